"""Mean and covariance of a modified equation on quadratics, against those of SGD itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.noise.continuous_time import modified_equation as me
from bilevel.noise.continuous_time import sde
from bilevel.noise.quadratic import transient

MODELS = (me.SME1, me.SME2, me.SPF, me.HA_SME)
CONVEX, SADDLE = (0.1, 0.5, 1.0), (-0.3, 0.5, 1.0)  # curvatures


# Compiled once for each number of steps, whatever the numbers.
_path, _moments = jax.jit(transient.path), jax.jit(sde.moments)


def make_setting(
    curvatures: Any, seed: int
) -> tuple[np.ndarray, np.ndarray, transient.MeanAndCovariance]:
    """`(K, C, start)`: at distance 1 along every eigenvector, K and C do not commute."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    root = rng.normal(size=(3, 3))
    start = transient.MeanAndCovariance(jnp.asarray(basis.sum(1)), jnp.zeros((3, 3)))
    return (basis * np.array(curvatures)) @ basis.T, root @ root.T / 3 + 0.1 * np.eye(3), start


def measure_errors(
    model: me.Model, curvatures: Any, eta: float, steps: Any, seed: int, relative: bool = True
) -> np.ndarray:
    """Errors of mean and covariance after the given steps, in the 2-norm; `[2, len(steps)]`."""
    K, C, start = make_setting(curvatures, seed)
    sgd = _path(K, C, eta * jnp.ones(int(max(steps))), start=start)
    found = _moments(sde.linear(model, K, C, eta), jnp.asarray(steps), start)
    pairs = [(np.asarray(a), np.asarray(b)[steps]) for a, b in zip(found, sgd, strict=True)]
    flat = [[part.reshape(len(steps), -1) for part in pair] for pair in pairs]
    size = [np.linalg.norm(b, axis=1) if relative else 1.0 for _, b in flat]
    return np.stack(
        [np.linalg.norm(a - b, axis=1) / s for (a, b), s in zip(flat, size, strict=True)]
    )

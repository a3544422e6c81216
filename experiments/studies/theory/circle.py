"""SGD on 1 - cos x and its differential equations, on the circle by Fourier series: no sampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

from bilevel.noise.continuous_time import modified_equation as me

NODES = 128  # coefficients of E cos x have fallen below rounding


def measure_weak_errors(
    model: me.Model, etas: np.ndarray, time: float, noise_variance: float
) -> np.ndarray:
    """Largest error over all starts of `E cos x` after `time / eta` steps, for each eta."""
    return np.array(
        [
            np.abs(
                follow_sgd(eta, time, noise_variance)
                - follow_model(model, eta, time, noise_variance)
            ).max()
            for eta in etas
        ]
    )


def follow_sgd(eta: float, time: float, noise_variance: float) -> np.ndarray:
    """`E cos x_k` for every start on the nodes; Gaussian noise damps each mode."""
    x, n, to_modes = _make_nodes()
    damped = np.exp(-(n**2) * eta**2 * noise_variance / 2)
    step = np.exp(1j * np.outer(x - eta * np.sin(x), n)) * damped @ to_modes
    return np.real(np.linalg.matrix_power(step, round(time / eta)) @ np.cos(x))


def follow_model(model: me.Model, eta: float, time: float, noise_variance: float) -> np.ndarray:
    """The same for the model: the exponential of its generator `b d/dx + a/2 d^2/dx^2`."""
    x, n, to_modes = _make_nodes()
    found = _make_coefficients(model, jnp.asarray(x), eta, noise_variance)
    modes = np.exp(1j * np.outer(x, n))
    first, second = (modes * (1j * n) ** k @ to_modes for k in (1, 2))
    drift, spread = np.asarray(found.drift), np.asarray(found.diffusion)[:, 0]
    return np.real(expm(time * (drift * first + spread / 2 * second)) @ np.cos(x))


@partial(jax.jit, static_argnames="model")
def _make_coefficients(model, x, eta, noise_variance):
    """Of the model at each node; `[nodes, 1]`, `[nodes, 1, 1]`."""

    def local(x):
        h, g, c = jnp.cos(x)[None, None], jnp.sin(x)[None], noise_variance * jnp.eye(1)
        return me.coefficients(model, h, g, c, eta)

    return jax.vmap(local)(x)


def _make_nodes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, wave numbers, and the matrix from values to coefficients."""
    x, n = 2 * np.pi * np.arange(NODES) / NODES, np.fft.fftfreq(NODES, 1 / NODES)
    return x, n, np.exp(-1j * np.outer(n, x)) / NODES

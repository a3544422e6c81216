"""Has SGD reached its stationary state? A balance that any loss satisfies there.

Source: Yaida, "Fluctuation-dissipation relations for stochastic gradient descent", ICLR 2019.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils import require_momentum, require_positive_int, require_positive_scalars


class Balance(NamedTuple):
    """The ``ratio`` of both sides, 1 at stationarity; ``z``: the gap over its standard error."""

    ratio: Array
    z: Array


def balance(
    params: ArrayLike,
    gradients: ArrayLike,
    step_size: float | Array,
    momentum: float | Array = 0.0,
    blocks: int = 20,
) -> Balance:
    r"""Compare ``2 <w . g>`` with ``(1 + mu) lam <|m|^2>`` over a window of ``T`` steps.

    The two are equal at stationarity for *any* loss, any noise and any origin of ``w``, as
    ``|w|^2``, ``w . m`` and the means no longer change. While ``|w|`` still falls ``2 <w . g>`` is
    too large. Pass ``params`` minus a fixed reference near the minimum to see more; the mean of
    the window will not do, as it hides the drift. The standard error comes from means over
    ``blocks`` stretches, each longer than the correlation time ``1 / (lam k_min)``. It is on the
    safe side: without momentum the gap telescopes to ``(|w_0|^2 - |w_T|^2) / (lam T)``, and blocks
    overstate its error, the more so where the drift itself differs from block to block (then the
    ratio tells). A small ``|z|`` does not prove stationarity: a slow direction may hide
    behind the noise of fast ones.

    Parameters
    ----------
    params : iterates ``w_0 .. w_T``, ``[T+1, d]``.
    gradients : the gradient that each step used, ``[T, d]``: that at ``w_t`` on the batch ``t``.
    step_size, momentum : constant over the window; heavy ball ``m <- mu m + g; w <- w - lam m``.
    blocks : at least 2.

    Raises
    ------
    ValueError : shapes that do not match, fewer than two steps per block.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> w = jnp.array([[1.0], [0.5], [1.0], [0.5], [1.0]])  # a cycle of period 2: g = +-1
    >>> g = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> noise.equilibrium.balance(w, g, 0.5, blocks=2).ratio.round(4)
    Array(1., dtype=float32)
    """
    owner = "equilibrium.balance"
    require_positive_int(owner, "blocks", blocks)
    w, g = jnp.asarray(params), jnp.asarray(gradients)
    if w.ndim != 2 or w.shape != (g.shape[0] + 1, *g.shape[1:]):
        raise ValueError(
            f"{owner}: params must be [T+1, d] and gradients [T, d], got {w.shape} and {g.shape}."
        )
    if blocks < 2 or g.shape[0] < 2 * blocks:
        raise ValueError(f"{owner}: {g.shape[0]} steps are too few for {blocks} blocks.")
    require_positive_scalars(owner, step_size=step_size)
    mu = require_momentum(owner, momentum)
    velocity = (w[:-1] - w[1:]) / step_size
    work = 2 * jnp.sum(w[:-1] * g, -1)
    heat = (1 + mu) * step_size * jnp.sum(velocity**2, -1)
    length = g.shape[0] // blocks
    means = (work - heat)[: blocks * length].reshape(blocks, length).mean(1)
    error = jnp.std(means, ddof=1) / jnp.sqrt(blocks)
    return Balance(work.mean() / heat.mean(), means.mean() / error)

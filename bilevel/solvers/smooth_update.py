"""The derivative of an optax update where a gradient entry is exactly 0.

Adam and its kin divide by ``sqrt(v)``, ``v`` a mean of squared gradients. Where an entry has always
been 0, ``v = 0``, and the chain rule multiplies the infinite slope of the root by ``dv = 2 g dg =
0``: NaN, though the update is 0 for every hyperparameter. So the derivative is taken a hair away
from 0, where the same product is 0 exactly; the update itself is not touched.
"""

import jax
import jax.numpy as jnp

from bilevel.core import StaticTransform, Transform
from bilevel.utils import FloatTree, Params, PyTree

Update = tuple[FloatTree, PyTree]


def update_smoothly(
    tx: Transform | StaticTransform,
    gradient: FloatTree,
    state: PyTree,
    params: Params,
    extra: dict[str, PyTree],
) -> Update:
    """Return ``(updates, state)`` of optax, with a derivative where an entry of the gradient is 0.

    A transformation that asks for ``extra`` (the loss itself: a line search) is left as it is.
    """
    try:
        jax.eval_shape(tx.update, gradient, state, params)
    except TypeError:
        return tx.update(gradient, state, params, **extra)
    return _update(tx, gradient, state, params)


@jax.custom_jvp
def _update(
    tx: Transform | StaticTransform, gradient: FloatTree, state: PyTree, params: Params
) -> Update:
    return tx.update(gradient, state, params)


@_update.defjvp
def _update_jvp(
    primals: tuple[Transform | StaticTransform, FloatTree, PyTree, Params], tangents: tuple
) -> tuple[Update, Update]:
    tx, gradient, state, params = primals
    off = jax.tree.map(_off_zero, gradient)
    _, tangent = jax.jvp(lambda tx, *rest: tx.update(*rest), (tx, off, state, params), tangents)
    return _update(*primals), tangent


def _off_zero(gradient: jax.Array) -> jax.Array:
    """Return the gradient with a number for 0 whose square is normal, and far below any epsilon."""
    least = jnp.asarray(jnp.finfo(gradient.dtype).tiny ** 0.4, gradient.dtype)
    return jnp.where(gradient == 0, least, gradient)

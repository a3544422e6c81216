r"""The closed form of a quadratic inner problem: one dense factorisation.

w* = w - H^{-1} grad g(w),   exact from any w when g is quadratic in w
"""

from dataclasses import dataclass

import jax
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Loss, Problem
from bilevel.linear import factorise
from bilevel.utils import DataTree, Float, Hyper, Key, Params, basis, register_node


@dataclass(frozen=True)
class Direct:
    r"""One Newton step with a dense Cholesky factorisation; for ``Problem(quadratic=True)``.

    The first step is exact up to rounding (condition number x machine precision); a second one
    refines it. Costs d Hessian products and d^3 / 3 operations, memory d^2, d being the number of
    entries of ``params``. Its step may be differentiated, by the same factor. A Hessian that is
    indefinite gives NaN; along a null space nothing moves.

    Raises
    ------
    ValueError : a problem that does not say ``quadratic=True``, or that has a ``prox``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     lambda w, h, x: jnp.mean((x - w) ** 2) / 2 + h * w**2 / 2, lambda w, h, x: w,
    ...     quadratic=True,
    ... )
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> bl.solve(problem, bl.Direct(), 1.0, jnp.array(0.0), data, jax.random.key(0),
    ...          steps=1).round(4)
    Array(1., dtype=float32)
    """

    def check(self, problem: Problem) -> None:
        """Validate the arguments."""
        if not problem.quadratic:
            raise ValueError(
                "`Direct` needs Problem(quadratic=True), an inner loss quadratic in params; this "
                "problem does not say that it is. Say so, or use Newton or LBFGS."
            )
        if problem.prox is not None:
            raise ValueError(
                "`Direct` has no closed form for Problem.prox. Use ProximalGradient or FISTA."
            )

    def init(self, params: Params, data: DataTree) -> tuple[()]:
        """Return the empty state."""
        return ()

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: tuple[()]
    ) -> tuple[Params, tuple[()]]:
        """Return the minimiser; the key is not used."""
        factor = factorise(_full_hessian(loss, *jax.lax.stop_gradient((params, hyper, data))))
        flat, unravel = ravel_pytree(params)

        def slopes(flat: Array) -> Array:
            return ravel_pytree(jax.grad(loss)(unravel(flat), hyper, data))[0]

        def solve(_: object, b: Array) -> Array:
            return factor.solve(b)

        # As one vector: JAX cannot transpose a solve of which a leaf is 0 whatever it is given.
        gradient, hvp = jax.linearize(slopes, flat)
        direction = jax.lax.custom_linear_solve(hvp, gradient, solve, symmetric=True)
        return unravel(flat - direction), state


register_node(Direct)


def _full_hessian(loss: Loss, params: Params, hyper: Hyper, data: DataTree) -> Float[Array, "d d"]:
    """Return the full Hessian in ``params``, ``[d, d]``."""
    _, hvp = jax.linearize(lambda w: jax.grad(loss)(w, hyper, data), params)
    return jax.vmap(lambda v: ravel_pytree(hvp(v))[0])(basis(params))

r"""The error bar of one hypergradient without any matrix: one number per example, by adjoints.

The average of the last N iterates of ``z = (x, D)`` deviates from ``(x*, D*)`` by about
``-C^{-1} (mean of the N batches' F_i(z*))``, independent of the step size. A hypergradient's
deviation is linear in that, so along a direction ``t`` in hyper space, with ``D t`` the derivative,

    h.t - h*.t ~ mean psi_i,   psi_i = -[a . g_i + v . (H_i D t + d grad f_i [t])]
    H v = l,   H a = Q D t + (d grad L / d theta) t - grad_x (v . (H(x) D t + d grad F [t]))
    Var(h.t) ~ p Var_i(psi_i) / N

``l``, ``Q`` gradient and Hessian of the outer loss L, ``g_i`` the gradient of example i. Conjugate
gradients and one pass over the examples per direction: O(n) memory. Left out: noise that feeds
back (a relative O(step size)) and the burn-in (N must be well above 1 / (step size x curvature)).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.linear import CG
from bilevel.noise.batches import batch_factor
from bilevel.noise.per_example import ExampleLoss, FlatProblem
from bilevel.utils import PyTree, resolve_renamed


class Influence(NamedTuple):
    """The influence ``values [p, m]`` of every example on every hypergradient entry.

    ``residual`` is the largest relative residual of the linear systems, ``()``; ``matvecs`` the
    number of Hessian-vector products that they took.
    """

    values: Array
    residual: Array
    matvecs: Array

    def standard_deviation(
        self, window: int, batch_size: int | None, sampling: str = "iid"
    ) -> Array:
        """Return that of the hypergradient read at the mean of ``window`` iterates, ``[p]``."""
        p = batch_factor(self.values.shape[1], batch_size, sampling)
        return jnp.sqrt(p * jnp.var(self.values, axis=1) / window)


def compute_influence(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    *,
    implicit: bool = False,
    linear: CG = CG(),
    chunk: int | None = 256,
) -> Influence:
    """Return the influence of every inner example on the hypergradient at the minimiser.

    ``psi_i = -[a . g_i + v . (H_i D t + d grad f_i [t])]`` for every unit direction ``t``.

    Parameters
    ----------
    params : the minimiser, as exactly as the error bar is to be known.
    implicit : the hypergradient is the implicit one at the average of ``x``, whose derivative is no
        iterate: ``psi_i = -a . g_i`` alone.
    linear : how the systems with the Hessian are solved, p + 1 of them twice over.
    chunk : examples vectorised at a time.

    Raises
    ------
    ValueError : a proximal part, or ``problem.start``.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> from bilevel.noise import influence
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ... )
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.array([1.5]))
    >>> found = influence.compute_influence(problem, 1.0, jnp.array(1.0), data)  # w* = 2 / (1 + h)
    >>> found.standard_deviation(window=100, batch_size=1).shape
    (1,)
    """
    flat = FlatProblem.from_problem("influence.compute_influence", problem, hyper, params, data)
    x, theta = flat.x, flat.theta
    v = linear.solve(flat.hvp, jax.grad(flat.outer)(x, theta), jnp.zeros_like(x))

    def one(t: Array) -> tuple[PyTree, Array, int | Array]:
        still = jax.jvp(lambda theta: flat.gradient(x, theta), (theta,), (t,))[1]
        moved = linear.solve(flat.hvp, -still, jnp.zeros_like(x))

        def along(fn: ExampleLoss, x: Array) -> Array:
            """Return how ``fn(x, theta)`` changes when theta moves along t and x with it."""
            return jax.jvp(fn, (x, theta), (moved.x, t))[1]

        third_order = jax.grad(lambda x: along(lambda *at: v.x @ flat.gradient(*at), x))(x)
        b = along(jax.grad(flat.outer), x) - third_order
        a = linear.solve(flat.hvp, b, jnp.zeros_like(x))

        def psi(loss: ExampleLoss) -> Array:
            noise = a.x @ jax.grad(loss)(x, theta)
            return -noise if implicit else -noise - along(lambda *at: v.x @ jax.grad(loss)(*at), x)

        values = flat.map_examples(psi, jnp.arange(flat.count), chunk)
        return values, jnp.maximum(moved.residual, a.residual), moved.matvecs + a.matvecs

    values, residuals, matvecs = jax.lax.map(one, jnp.eye(len(theta), dtype=theta.dtype))
    residual = jnp.maximum(jnp.max(residuals), v.residual)
    return Influence(values, residual, jnp.sum(matvecs) + v.matvecs)


_RENAMED: dict[str, tuple[str, object]] = {
    "of": ("compute_influence", compute_influence),
}


def __getattr__(name: str) -> object:
    """Return what an old name stands for, with a warning."""
    return resolve_renamed(__name__, _RENAMED, name)

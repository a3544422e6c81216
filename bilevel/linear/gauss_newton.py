r"""Gauss-Newton products: the curvature of the loss, without that of the model.

    inner(w, h, batch) = loss(outputs(w, h, batch), w, h, batch),   J = d outputs / d w
    G = Hessian in w of   loss(outputs(w0) + J (w - w0), w, h, batch)   at w0

Schraudolph, Neural Computation 2002. ``G = J^T B J +`` the curvature of penalties, ``B`` the
Hessian of the loss in the outputs: positive semi-definite whatever the model, if the loss is
convex. ``H - G = sum_i (d loss / d output_i) Hessian(output_i)`` vanishes where the model fits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Loss, compute_in, count_examples
from bilevel.linear.base import LinearSolver, Matvec, Solution, as_operator, relative_residual
from bilevel.linear.cg import CG
from bilevel.utils import PyTree, axpy, register_node


@dataclass(frozen=True)
class OutputLoss:
    r"""An inner loss in two parts, ``loss(outputs(params, hyper, batch), params, hyper, batch)``.

    Use it as ``Problem.inner``: it is that loss, and :class:`bilevel.GaussNewton` can linearise the
    model in it. So there is one statement of the loss, not two that must agree.

    Parameters
    ----------
    outputs : ``(params, hyper, batch) -> `` the model's outputs, any pytree.
    loss : ``(outputs, params, hyper, batch) -> ()``, the mean over the batch, penalties included.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> inner = bl.OutputLoss(
    ...     outputs=lambda w, h, batch: jnp.tanh(batch[0] @ w),
    ...     loss=lambda z, w, h, batch: jnp.mean((z - batch[1]) ** 2) / 2 + h * jnp.sum(w**2) / 2,
    ... )
    >>> problem = bl.Problem(inner, outer=lambda w, h, batch: inner(w, 0.0, batch))
    """

    needs_symmetry: ClassVar[bool] = True

    outputs: Callable[[PyTree, PyTree, PyTree], PyTree]
    loss: Callable[[PyTree, PyTree, PyTree, PyTree], Array]

    def __call__(self, params: PyTree, hyper: PyTree, batch: PyTree) -> Array:
        """Return the inner loss."""
        return self.loss(self.outputs(params, hyper, batch), params, hyper, batch)

    def in_dtype(self, dtype: object) -> "OutputLoss":
        """Return the same loss of a model that computes in ``dtype``; ``None``: in its own."""
        return replace(self, outputs=compute_in(self.outputs, dtype))

    def linearised(self, at: PyTree) -> Loss:
        """Return the same loss of the model linearised at the params ``at``.

        Its Hessian there is G.
        """

        def loss(params: PyTree, hyper: PyTree, batch: PyTree) -> Array:
            def outputs(params: PyTree) -> PyTree:
                return self.outputs(params, hyper, batch)

            z, push = jax.linearize(outputs, at)
            moved = jax.tree.map(lambda a, b: a + b, z, push(axpy(-1, at, params)))
            return self.loss(moved, params, hyper, batch)

        return loss

    def sample_curvature(
        self, at: PyTree, hyper: PyTree, data: PyTree, key: Array, rows: int
    ) -> tuple[PyTree, PyTree]:
        """Return vectors ``u_i`` of drawn rows, and the diagonal of the penalty's Hessian.

        ``E u_i u_i^T`` is the part of G that goes through the outputs: ``u_i = J_i^T B_i^{1/2} e``
        with random signs ``e``. Leading axis: at most ``rows``. A penalty is taken for diagonal.
        """
        n = count_examples(data)
        pick, signs = jax.random.split(key)
        chosen = jax.random.permutation(pick, n)[:rows]
        batches = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen][:, None], data)

        def of_row(batch: PyTree, key: Array) -> PyTree:
            outputs, pull = jax.vjp(lambda w: self.outputs(w, hyper, batch), at)
            z, unravel = ravel_pytree(outputs)
            bend = jax.hessian(lambda z: self.loss(unravel(z), at, hyper, batch))(z)
            values, axes = jnp.linalg.eigh(bend)
            e = jax.random.rademacher(key, z.shape, z.dtype)
            return pull(unravel(axes @ (jnp.sqrt(jnp.maximum(values, 0)) * e)))[0]

        outputs = self.outputs(at, hyper, data)
        slope = jax.grad(lambda w: self.loss(outputs, w, hyper, data))
        penalty = jax.jvp(slope, (at,), (jax.tree.map(jnp.ones_like, at),))[1]
        return jax.vmap(of_row)(batches, jax.random.split(signs, len(chosen))), penalty


@dataclass(frozen=True)
class GaussNewton:
    r"""Solve with Gauss-Newton products in place of Hessian products; needs an ``OutputLoss``.

    For networks whose Hessian is indefinite: CG then has a positive semi-definite system (give
    ``Implicit`` some ``damping`` if the loss has no penalty). The solution is that of another
    system; the residual is that of the true one, so that it shows what the model's curvature,
    which is left out, amounts to.

    Parameters
    ----------
    linear : the solver that sees the Gauss-Newton products.

    Raises
    ------
    ValueError : ``Problem.inner`` is not a :class:`bilevel.OutputLoss`.

    Examples
    --------
    >>> import bilevel as bl
    >>> linear = bl.GaussNewton(bl.CG(tol=1e-4))
    >>> estimator = bl.Implicit(bl.GradientDescent(0.1), steps=100, linear=linear, damping=1e-3)
    """

    linear: LinearSolver = CG()

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array) -> Solution:
        """Solve with ``G``; one more product with ``H`` for the residual."""
        operator = as_operator(hessian)
        if operator.gauss_newton is None:
            raise ValueError(
                "GaussNewton must know which part of the inner loss is the model: make "
                "Problem.inner a bl.OutputLoss(outputs, loss)."
            )
        convex = replace(operator.gauss_newton(), inverse=operator.inverse)
        solved = self.linear.solve(convex, b, x0, key)
        residual = relative_residual(hessian, b, solved.x)
        return Solution(solved.x, residual, solved.matvecs + 1, solved.condition)


register_node(GaussNewton)

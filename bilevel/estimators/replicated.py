r"""Replication: any estimator over n independent keys, with the standard error that it has.

    grad = mean_i g_i,   standard_error = sd_i(g_i) / sqrt(n),   sd with n - 1 degrees of freedom

Textbook Monte Carlo; for hypergradients of SGD see Grazzi, Pontil, Salzo, AISTATS 2021.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    OUTER_ROWS,
    Counts,
    Data,
    Estimate,
    Estimator,
    Evidence,
    InnerState,
    Problem,
    rebind_key,
)
from bilevel.estimators.compared import find_exact
from bilevel.solvers import Solver
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    norm,
    register_node,
    relative_size,
    require_positive,
    require_positive_int,
    vdot,
)


@dataclass(frozen=True)
class Replicated:
    """The mean of ``n`` independent copies of an estimator, run side by side by ``vmap``.

    Every copy keeps its own chain from call to call, so the copies stay independent and
    ``evidence.standard_error`` is honest under a warm start. ``value`` and ``bias`` are means,
    ``linear_residual`` the worst, ``counts`` the sum.

    ``params`` (and ``inner_residual``, ``aux``) are those of the first copy, a point that the
    solver really visited. The mean of the copies has less noise on a convex inner loss, but on a
    neural network it is a network that nobody trained: ``state.memory.params``, ``[n, *leaf]``, has
    them all.

    Parameters
    ----------
    estimator : any estimator.
    n : number of copies, at least 2.

    Raises
    ------
    ValueError : ``n`` below 2.

    Examples
    --------
    >>> import bilevel as bl
    >>> one = bl.Forward(bl.SGD(step_size=0.1, batch_size=32), steps=1000)
    >>> estimator = bl.Replicated(one, n=8)
    """

    estimator: Estimator
    n: int

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Replicated", "n", self.n)
        if self.n < 2:
            raise ValueError(
                f"Replicated: n must be at least 2, or there is no standard error, got {self.n}."
            )

    @property
    def solver(self) -> Solver | None:
        """The inner solver, if there is one: :func:`bilevel.tune` asks it why it diverged."""
        return getattr(self.estimator, "solver", None)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return all copies at one start point; memory holds an :class:`InnerState` for each."""
        one = self.estimator.init(params, data)
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.n, *jnp.shape(x))), one)
        return InnerState(one.params, one.solver_state, copies, one.reference)

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Take a step of every copy, each with its own key."""

        def one(copy: InnerState, key: Key) -> tuple[Estimate, InnerState]:
            return self.estimator.step(rebind_key(problem, key), hyper, copy, data, key)

        every, copies = jax.vmap(one)(lower.memory, jax.random.split(key, self.n))
        first: InnerState = jax.tree.map(lambda x: x[0], copies)
        value, grad = jax.tree.map(lambda x: jnp.mean(x, 0), (every.value, every.grad))
        got = every.evidence

        def spread(copies: Hyper) -> Hyper:
            return jax.tree.map(lambda x: jnp.std(x, 0, ddof=1) / self.n**0.5, copies)

        error, corrected = spread(every.grad), None
        if got.bias is not None:
            corrected = spread(jax.tree.map(jnp.subtract, every.grad, got.bias))
        evidence = Evidence(
            inner_residual=jax.tree.map(lambda x: x[0], got.inner_residual),
            linear_residual=jax.tree.map(jnp.max, got.linear_residual),
            standard_error=error,
            bias=jax.tree.map(lambda x: jnp.mean(x, 0), got.bias),
            counts=Counts(*(jnp.sum(x, dtype=jnp.int32) for x in got.counts)),
            derivative_residual=jax.tree.map(jnp.max, got.derivative_residual),
            residual_error=self._common(problem, hyper, first, data, got, grad, error),
            freedom=jnp.asarray(self.n - 1, jnp.int32),
            corrected_error=corrected,
            # Every copy draws outer rows of its own: their noise is in the spread.
            not_measured=tuple(name for name in got.not_measured if name != OUTER_ROWS),
        )
        lower = InnerState(first.params, first.solver_state, copies, first.reference)
        aux = jax.tree.map(lambda x: x[0], every.aux)
        return Estimate(value, grad, evidence, aux), lower

    def _common(
        self,
        problem: Problem,
        hyper: Hyper,
        first: InnerState,
        data: Data,
        got: Evidence,
        grad: Hyper,
        error: Hyper,
    ) -> Array | None:
        """Return what the copies have in common, ``()``: the error of the mean less its noise.

        ``E |grad - exact|^2 = |bias|^2 + |standard_error|^2``. Where the problem is too large to be
        solved, from the copies' own: ``E |g_i - exact|^2 = |bias|^2 + n |standard_error|^2``, with
        the gradient for the exact one's size.
        """
        if (errors := got.residual_error) is None:
            return None
        if got.bias is not None:
            return jnp.max(errors)  # of what the bias leaves, which has little of the noise
        exact = find_exact(problem, self.estimator, hyper, first.params, data)
        if exact is not None:
            noise = relative_size(norm(error), norm(exact.grad))
            return jnp.sqrt(jnp.maximum(exact.error(grad) ** 2 - noise**2, 0))
        noise = relative_size(norm(error), norm(grad))
        squared = jnp.mean(errors**2, 0) - self.n * noise**2
        return jnp.sqrt(jnp.maximum(squared, 0))

    def needed(self, estimate: Estimate, tolerance: float = 0.1) -> Array:
        r"""Return how many copies bring the noise of ``grad`` below ``tolerance`` times its size.

        ``n |standard_error|^2 / (tolerance^2 signal^2)``, ``signal^2 = |grad|^2 -
        |standard_error|^2``, which has the expectation ``|E grad|^2``; ``()``. ``n`` is enough if
        this is at most ``n``; infinite says that the noise hides the gradient.

        Examples
        --------
        >>> import jax.numpy as jnp, bilevel as bl
        >>> estimator = bl.Replicated(bl.Forward(bl.SGD(0.1, batch_size=8), steps=10), n=4)
        >>> noisy = bl.Evidence(standard_error=jnp.array([0.3, 0.4]))
        >>> estimator.needed(bl.Estimate(jnp.array(0.0), jnp.array([3.0, 4.0]), noisy)).round(2)
        Array(4.04, dtype=float32)
        """
        require_positive("Replicated.needed", "tolerance", tolerance)
        noise = vdot(estimate.evidence.standard_error, estimate.evidence.standard_error)
        signal = vdot(estimate.grad, estimate.grad) - noise
        wanted = self.n * noise / (tolerance**2 * jnp.where(signal > 0, signal, 1))
        return jnp.where(signal > 0, wanted, jnp.where(noise > 0, jnp.inf, 0))


register_node(Replicated, data_fields=["estimator"], meta_fields=["n"])

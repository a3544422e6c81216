r"""Evolution strategies: differences of the outer loss through the whole inner loop.

    grad = mean_i [F(h + sigma u_i; b_i) - F(h - sigma u_i; b_i)] / (2 sigma) u_i,
    F(h; b) = outer(w_K(h; b), h),   u_i random signs, E[u u^T] = I

Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation", IEEE TAC 1992, equation 2.2; Salimans et al., 2017, with Gaussian ``u``. Signs have
the smallest variance of all such directions.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    InnerState,
    Problem,
    draw_outer,
    init_inner_state,
    inner_loss,
    rebind_key,
)
from bilevel.estimators import directions as dirs
from bilevel.estimators.compared import compared_evidence
from bilevel.estimators.refusals import ALL_PARTS, check_read
from bilevel.solvers import (
    Carry,
    Solver,
    end_chain,
    run_counted,
    start_solver,
)
from bilevel.spaces import free_coordinates, in_natural_units, move_coordinates
from bilevel.utils import (
    Count,
    Counter,
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    Scalar,
    register_node,
    require_positive,
    require_positive_int,
)


@dataclass(frozen=True)
class Evolution:
    """Antithetic evolution strategies: for long or chaotic loops, and solvers without derivative.

    Runs ``2 pairs + 1`` inner loops side by side and differentiates none. The two runs of a pair
    see the same minibatches (common random numbers), different pairs different ones, so that
    ``evidence.standard_error`` covers directions and minibatches. The variance grows with
    ``size(hyper)``. The gradient is that of the outer loss averaged over ``h +- sigma u``: exact
    for a value that is quadratic in ``hyper``, else O(sigma^2) away, and bounded where the true
    one explodes. As for ``Reverse``, only the K steps of the call are seen.

    Parameters
    ----------
    solver, steps : the inner solver, which need not be differentiable, and its steps K per call.
    sigma : size of the perturbation of every entry of ``hyper``; with ``problem.space``, of its
        free coordinates.
    pairs : number of antithetic pairs, at least 2.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Every pair draws its own, so that the standard error has its noise in it.

    Raises
    ------
    ValueError : ``steps`` below 1, ``pairs`` below 2, ``sigma`` not positive, a hyperparameter that
        nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Evolution(bl.SGD(step_size=0.1, batch_size=32), steps=1000, pairs=64)
    """

    differentiates: ClassVar[str] = "values"  # what must have finite derivatives

    handles: ClassVar[tuple[str, ...]] = ALL_PARTS

    solver: Solver
    steps: int
    sigma: Number = 0.01
    pairs: int = 16
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_es("Evolution", self.steps, self.sigma, self.pairs)

    def scaled(self, times: int) -> "Evolution":
        """Return the estimator with so many times its pairs of random directions."""
        return replace(self, pairs=times * self.pairs)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the chain's start point; nothing else is carried."""
        return init_inner_state(params, self.solver.init(params, data.inner))

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Run the chain, and the pairs from the same point."""
        check_read("Evolution", problem, self.solver, hyper, lower, data, key)
        before, _ = start_solver(problem, self.solver, hyper, lower, data)
        free = free_coordinates(problem.space, hyper)

        def play(hyper: Hyper, key: Key) -> tuple[Scalar, Carry, Counter]:
            seen = draw_outer(data, self.outer_batch_size, key)
            return run_episode(problem, self.solver, self.steps, hyper, lower, seen, key)

        def slope(direction: PyTree, key: Key) -> tuple[Array, Count]:
            def one(sign: Array) -> tuple[Scalar, Counter]:
                at = move_coordinates(problem.space, free, sign * self.sigma, direction, hyper)
                value, _, taken = play(at, key)
                return value, taken

            (up, down), taken = jax.vmap(one)(jnp.array([1, -1]))
            return (up - down) / (2 * self.sigma), taken

        # Step k uses fold_in(key, k), k < steps: what follows must not repeat those keys.
        drawn_by, pairs_by = (jax.random.fold_in(key, self.steps + i) for i in (0, 1))
        signs = dirs.Random(self.pairs)
        drawn = dirs.draw(signs, free, drawn_by)
        slopes, each = jax.vmap(slope)(drawn, jax.random.split(pairs_by, self.pairs))
        grad, error = in_natural_units(
            problem.space, free, *dirs.assemble_gradient(signs, drawn, slopes, free)
        )

        value, (params, state), taken = play(hyper, key)
        seen = draw_outer(data, self.outer_batch_size, key)
        end = end_chain(problem, hyper, (params, state), seen)
        evidence, reference = compared_evidence(
            *(end.problem, hyper, before, params, data, key, lower.reference, grad),
            solver=self.solver,
            passes=2 * self.pairs * self.steps,
            differentiable=False,
        )
        counts = Counts.of(gradients=jnp.sum(each) + taken + 1)
        evidence = replace(evidence, standard_error=error, counts=counts)
        return Estimate(value, grad, evidence, end.aux), InnerState(params, state, None, reference)


register_node(
    Evolution, data_fields=["solver", "sigma"], meta_fields=["steps", "pairs", "outer_batch_size"]
)


def require_es(owner: str, steps: int, sigma: Number, pairs: int) -> None:
    """Raise unless the settings of an evolution strategy are in range."""
    require_positive_int(owner, "steps", steps)
    require_positive(owner, "sigma", sigma)
    require_positive_int(owner, "pairs", pairs)
    if pairs < 2:
        raise ValueError(f"{owner}: pairs must be at least 2 for a standard error, got {pairs}.")


def run_episode(
    problem: Problem,
    solver: Solver,
    steps: int,
    hyper: Hyper,
    lower: InnerState,
    data: Data,
    key: Key,
) -> tuple[Scalar, Carry, Counter]:
    """Return the outer value after ``steps`` at ``hyper``, the chain's end, and the steps taken."""
    problem = rebind_key(problem, key)
    carry = start_solver(problem, solver, hyper, lower, data)
    loss = inner_loss(problem)
    carry, taken = run_counted(loss, solver, hyper, carry, data, key, steps=steps)
    value = end_chain(problem, hyper, carry, data).value(hyper)
    return value, carry, jnp.asarray(taken, jnp.int32)

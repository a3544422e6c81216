r"""Reverse mode: back-propagation through the solver's steps, with the same minibatches.

    a_K = grad_params outer,   a_k = (d step_k / d x_k)^T a_{k+1},
    grad = grad_hyper outer + sum_k (d step_k / d h)^T a_{k+1}

Domke 2012; Maclaurin, Duvenaud, Adams, ICML 2015; Franceschi et al., ICML 2017. Checkpoints as in
Griewank and Walther, 2000, in the nested form of Chen et al., 2016; truncation as in Shaban et al.,
AISTATS 2019.
"""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    InnerState,
    Loss,
    Problem,
    draw_outer,
    init_inner_state,
    inner_loss,
    note_outer_rows,
    require_window,
)
from bilevel.estimators.mixed_mode import mixed_mode
from bilevel.estimators.numbered import NumberedRows
from bilevel.estimators.once import step_once
from bilevel.estimators.refusals import ALL_PARTS, check_unrolled
from bilevel.estimators.remainder import adjoint_evidence
from bilevel.estimators.segments import choose_levels, run_in_segments
from bilevel.solvers import (
    Carry,
    Solver,
    draw_ahead,
    end_chain,
    run_steps,
    start_solver,
)
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    PyTree,
    axpy,
    nbytes,
    partition,
    register_node,
    require_positive_int,
)

MEMORY = ("auto", "full", "checkpoint")
_FEW_ROWS = 2**16  # row numbers that a checkpointed call keeps, 256 KiB


@dataclass(frozen=True)
class Reverse:
    """Back-propagation through the inner loop: one backward pass whatever the size of ``hyper``.

    Hessian products run in mixed mode (forward over reverse), so that a step stores its params and
    its minibatch, never the inside of the loss.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    truncate : differentiate only the last ``truncate`` steps; ``None`` differentiates all. For a
        contraction of rate rho the dropped part is O(rho^truncate).
    memory : ``"full"`` stores what all K steps need; ``"checkpoint"`` stores 2 sqrt(K) of it and
        runs the loop once more, for K above 4096 at most 3 log2(K) and runs it four to eight times;
        ``"auto"`` takes ``"full"`` while that fits into ``budget``, else what runs least.
    budget : bytes that ``"auto"`` may fill, 256 MiB by default.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : ``steps`` or ``truncate`` out of range, an unknown ``memory``, a hyperparameter
        that nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Reverse(bl.SGD(step_size=0.1, batch_size=32), steps=1000)
    """

    handles: ClassVar[tuple[str, ...]] = ALL_PARTS

    solver: Solver
    steps: int
    truncate: int | None = None
    memory: str = "auto"
    budget: int = 2**28
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Reverse", "steps", self.steps)
        if self.truncate is not None and not 1 <= self.truncate <= self.steps:
            raise ValueError(
                f"Reverse: truncate must lie between 1 and steps={self.steps}, or be None to "
                f"differentiate every step, got {self.truncate}."
            )
        if self.memory not in MEMORY:
            raise ValueError(f"Reverse: memory must be one of {MEMORY}, got {self.memory!r}.")

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the chain's start point; nothing else is carried."""
        return init_inner_state(params, self.solver.init(params, data.inner))

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Run the chain forwards, then pull the outer gradient back through it."""
        of_loss = problem.is_plain and not problem.is_equation
        if of_loss and NumberedRows.of(self.solver, data).rows is not None:
            return step_once(problem, self, hyper, lower, data, key)
        return self.take(problem, hyper, lower, data, key, once=False)

    def take(
        self,
        problem: Problem,
        hyper: Hyper,
        lower: InnerState,
        data: Data,
        key: Key,
        *,
        once: bool,
    ) -> tuple[Estimate, InnerState]:
        """Take a step; ``once`` says that nobody differentiates its derivative again."""
        data = draw_outer(data, self.outer_batch_size, key)
        check_unrolled("Reverse", problem, self.solver, hyper, lower, data, key)
        tracked = self.steps if self.truncate is None else self.truncate
        skipped = self.steps - tracked
        before, _ = carry = start_solver(problem, self.solver, hyper, lower, data)
        if skipped:
            carry = run_steps(
                inner_loss(problem), self.solver, hyper, carry, data, key, steps=skipped
            )

        # A step keeps the numbers of the rows that it saw, not the rows.
        numbered = NumberedRows.of(self.solver, data) if once else NumberedRows(data, None)
        loss, levels = self._plan(problem, numbered, once, hyper, carry, key, tracked)
        moving, fixed, merge = partition(carry)

        def run(hyper: PyTree, moving: list[Array]) -> tuple[list[Array], Carry]:
            begun = merge(moving, fixed)
            end = self._tracked(loss, hyper, begun, numbered.data, key, skipped, tracked, levels)
            return end_chain(problem, hyper, end, data).seen, end

        seen, pull, (params, state) = jax.vjp(run, hyper, moving, has_aux=True)
        end = end_chain(problem, hyper, (params, state), data)
        value, (cotangent, grad) = jax.value_and_grad(end.outer, argnums=(0, 1))(seen, hyper)
        through, oldest = pull(cotangent)
        grad = axpy(1, through, grad)
        if problem.start is not None and not skipped:
            grad = axpy(1, self._pull_start(problem, hyper, lower, data, oldest), grad)
        leaves, tree = jax.tree.flatten(params)
        evidence, reference = adjoint_evidence(
            end.problem,
            hyper,
            before,
            params,
            data,
            key,
            lower.reference,
            oldest,
            tree.unflatten(cotangent[: len(leaves)]),
            grad,
            solver=self.solver,
            passes=4 * tracked + skipped,
            whole=not skipped,
        )
        gradients = self.steps + (levels - 1) * tracked + 1
        counts = Counts.of(gradients=gradients, vjps=tracked, hvps=evidence.counts.hvps)
        evidence = note_outer_rows(replace(evidence, counts=counts), self.outer_batch_size)
        estimate = Estimate(value, grad, evidence, end.aux)
        return estimate, InnerState(params, state, None, reference)

    def _pull_start(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, oldest: list[Array]
    ) -> Hyper:
        """Return the cotangent of ``hyper`` by the start point that depends on it."""

        def begin(hyper: Hyper) -> list[Array]:
            return partition(start_solver(problem, self.solver, hyper, lower, data))[0]

        return jax.vjp(begin, hyper)[1](oldest)[0]

    def scaled(self, times: int) -> "Reverse":
        """Return the estimator with so many times its steps, and those that it differentiates."""
        require_window(self, self.solver, average=0)
        truncate = None if self.truncate is None else times * self.truncate
        return replace(self, steps=times * self.steps, truncate=truncate)

    def _plan(
        self,
        problem: Problem,
        numbered: NumberedRows,
        once: bool,
        hyper: Hyper,
        carry: Carry,
        key: Key,
        n: int,
    ) -> tuple[Loss, int]:
        """Return the loss to step on, and the levels of segments: as told, or by the budget."""

        def pull_back(loss: Loss) -> PyTree:
            def step(hyper: Hyper, params: Params, state: PyTree) -> Carry:
                return self.solver.step(loss, params, hyper, numbered.data.inner, key, state)

            return jax.eval_shape(lambda *args: jax.vjp(step, *args)[1], hyper, *carry)

        rule = functools.partial(mixed_mode, once=once)
        loss = inner_loss(problem, numbered.loss(problem.inner, rule))
        try:
            pull = pull_back(loss)
        except (TypeError, NotImplementedError):
            # A step that pushes tangents through the loss (Newton's) needs the loss itself.
            loss = inner_loss(problem, numbered.loss(problem.inner))
            pull = pull_back(loss)
        most = self.budget / max(nbytes(pull) - nbytes((hyper, numbered.rows)), 1)
        if self.memory == "full" or (self.memory == "auto" and n <= most):
            return loss, 1
        return loss, choose_levels(n, most if self.memory == "auto" else None)

    def _tracked(
        self,
        loss: Loss,
        hyper: Hyper,
        carry: Carry,
        data: Data,
        key: Key,
        first: int,
        n: int,
        levels: int,
    ) -> Carry:
        """Run steps ``first .. first + n - 1``, arranged so that few states are stored."""
        # Few row numbers are kept where segments are run twice, and would draw them twice.
        most = _FEW_ROWS if levels > 1 else 0
        keys = draw_ahead(self.solver, data.inner, key, n, first, most)

        def steps(length: int, loop: tuple) -> tuple:
            k, params, state = loop
            carry = (params, state)
            carry = run_steps(loss, self.solver, hyper, carry, data, keys, steps=length, first=k)
            return (k + length, *carry)

        return run_in_segments(steps, (first, *carry), n, levels)[1:]


register_node(
    Reverse,
    data_fields=["solver"],
    meta_fields=["steps", "truncate", "memory", "budget", "outer_batch_size"],
)

"""Why this plan, in words."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bilevel.planning.analysis import Analysis
from bilevel.planning.report import Split
from bilevel.planning.search import Candidate, Predictor

_ROOT = "it falls as the root of window x batch size, whatever the step size"


class Asked(Protocol):
    """What is known of the problem, and what the plan was asked to keep to."""

    @property
    def problem(self) -> Analysis:
        """Return the problem at its solution."""
        ...

    @property
    def mu(self) -> float:
        """Return the momentum that is planned for."""
        ...

    @property
    def replicas(self) -> int | None:
        """Return the number of runs that was asked for."""
        ...

    @property
    def max_steps(self) -> int:
        """Return the longest run that was allowed."""
        ...


def too_large(step_size: float, trusted: float) -> str:
    """Return the verdict on a step size that was asked for."""
    return (
        f"step_size={step_size:.4g} is above {trusted:.4g}, the largest that the theory is trusted "
        "with here"
    )


def explain_plan(
    planner: Asked, best: Candidate, rows: Sequence[Candidate], split: Split, run: Predictor
) -> tuple[str, ...]:
    """Return one sentence or two for every number of the plan."""
    forget = (1 - planner.mu) / (best.step_size * planner.problem.curvature[0])
    lines = [_step(planner, best, forget)]
    if run.period > 1:
        lines += [_noise_over_epochs(best, split, run), _mean_over_epochs(planner, split, run)]
    elif run.noisy:
        if planner.problem.route == "dense":
            lines += [_noise(best, split), _mean(split, run)]
        else:
            lines.append(f"Noise of {split.noise:.2g}: {_ROOT}.")
            if run.nonlinearity > 0:
                lines.append(_mean(split, run))
    lines += [_start(best, forget), _replicas(planner, best), _batches(best, rows)]
    if planner.problem.route == "influence":
        lines.append(
            "Without exact moments, for which the problem is too large: the noise is that of long "
            "averages (the influence of every example, by conjugate gradients), curvatures are by "
            "Lanczos, and what the start leaves is bounded from above: the run may do better."
        )
    return tuple(lines)


def _step(planner: Asked, best: Candidate, forget: float) -> str:
    limit, trusted = (
        planner.problem.limits[best.batch_size],
        planner.problem.trusted[best.batch_size],
    )
    text = (
        f"Step size {best.step_size:.3g}: second moments grow beyond {limit:.3g} (batch "
        f"{best.batch}), and theory is trusted up to {trusted:.3g}. "
    )
    if best.step_size >= 0.99 * trusted:
        return text + f"The largest forgets the start soonest, by a factor e in {forget:.3g} steps."
    return text + (
        f"It forgets the start by a factor e in {forget:.3g} steps; a larger one would have "
        "more noise and bias than it saves steps."
    )


def _noise(best: Candidate, split: Split) -> str:
    text = f"A single iterate's hypergradient has noise of {split.iterate:.2g} of its size; "
    if best.window == 1:
        return text + "that is little enough without averaging."
    return text + (
        f"the mean of the last {best.window} iterates brings it to {split.noise:.2g}: {_ROOT}."
    )


def _noise_over_epochs(best: Candidate, split: Split, run: Predictor) -> str:
    sure = f"known to {run.noise_doubt:.1g} of itself, as only some orders of the examples were "
    exact = "exact, as all orders of the examples were "
    return (
        f"At the end of an epoch of {run.period} steps a hypergradient has noise of "
        f"{split.iterate:.2g} of its size, at the mean of whole epochs (here "
        f"{best.window // run.period}) {split.noise:.2g}, "
        f"{sure if run.noise_doubt else exact}followed."
    )


def _mean_over_epochs(planner: Asked, split: Split, run: Predictor) -> str:
    doubt = np.linalg.norm(run.doubt) / np.linalg.norm(planner.problem.exact)
    text = (
        f"At stationarity the mean is off by {split.bias:.2g} +- {doubt:.1g}: within an "
        "epoch the examples to come depend on those that were, which no averaging removes."
    )
    return text + (" The inner loss, not quadratic, adds to it." if run.nonlinearity > 1e-6 else "")


def _mean(split: Split, run: Predictor) -> str:
    if run.nonlinearity < 1e-6:
        return (
            f"At stationarity the mean is off by {split.bias:.2g}: on a quadratic inner loss only "
            "because iterate and derivative share minibatches, which averaging removes."
        )
    return (
        f"At stationarity the mean is off by {split.bias:.2g}. The inner loss is not quadratic, "
        "and what that adds neither averaging nor replicas remove, only a smaller ratio of step "
        "size to batch size, or bl.Richardson."
    )


def _start(best: Candidate, forget: float) -> str:
    return (
        f"The derivative begins at step {best.start}, as an earlier part of it would be forgotten, "
        f"and is read {best.wait} steps later or more ({best.wait / forget:.2g} times those "
        f"{forget:.3g}), when the start leaves a small part of the tolerance."
    )


def _replicas(planner: Asked, best: Candidate) -> str:
    if best.replicas == 1:
        return (
            "One run: every replica would pay for the way to the solution again. replicas=8 gives "
            "the estimate a measured standard error."
        )
    if planner.replicas is None:
        return f"{best.replicas} replicas, so that no run is longer than {planner.max_steps} steps."
    return (
        f"{best.replicas} replicas, as asked for: the estimate has a measured standard error, and "
        "every run pays for the way to the solution."
    )


def _batches(best: Candidate, rows: Sequence[Candidate]) -> str:
    near = [row for row in rows if row.cost <= 1.5 * best.cost and row.batch_size is not None]
    largest = max((row.batch_size or 0 for row in near), default=0)
    if best.batch_size is None or largest <= best.batch_size:
        return "The cheapest batch size in gradients of single examples; the table has the others."
    return (
        f"Cheapest in gradients of single examples; batch size {largest} costs at most half as "
        "much again and takes fewer steps, which is faster on hardware that vectorises."
    )

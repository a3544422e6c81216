"""The schedules that `batch_and_schedule` compares, at equal gradients of single examples."""

from typing import Any

import jax
import numpy as np

import bilevel as bl
from experiments.studies.open_questions import measure, problems

STEP = 0.8  # of part 1 of the study, over the largest curvature of one example
SCHEDULES = (
    "constant",
    "constant, epochs",
    "tail average",
    "tail average, epochs",
    "theory: 2 / mu(k + 8 kappa^2)",
    "2 / mu(k + 2 kappa)",
    "step / 4 per stage",
    "batch x 4 per stage",
)


def make_schedule(name: str, at: problems.Setting, steps: int) -> bl.Forward:
    """Return ``Forward`` on single examples with the named schedule."""
    step: Any = STEP / 2 / at.largest
    kappa = at.largest / at.smallest
    if name.startswith("theory"):
        step = bl.InverseTime(mu=at.smallest, L=at.largest)
    elif name.startswith("2 /"):  # the same form, its delay set by the stability limit instead
        step = bl.InverseTime(mu=at.smallest, L=at.smallest * (2 * kappa / 8) ** 0.5)
    sampling = "epoch" if name.endswith("epochs") else "iid"
    average = steps // 2 if name.startswith("tail") else 0
    return bl.Forward(bl.SGD(step, batch_size=1, sampling=sampling), steps, average=average)


def run_stages(
    at: problems.Setting, name: str, budget: int, runs: int, seed: int
) -> measure.Sample:
    """Run three stages of equal cost, ``Forward`` going on from iterate and derivative."""
    stages = []
    for j in range(3):
        B = 4**j if name.startswith("batch") else 1
        step = STEP / 2 / at.largest / (1 if name.startswith("batch") else 4**j)
        stages.append(bl.Forward(bl.SGD(step, batch_size=B), budget // (6 * B)))

    def one(key: Any) -> Any:
        state, grad, paid = None, None, 0.0
        for j, stage in enumerate(stages):
            estimate, state = bl.hypergradient(
                at.problem,
                stage,
                at.hyper,
                at.params,
                at.data,
                jax.random.fold_in(key, j),
                state=state,
            )
            grad, counts = estimate.grad, estimate.evidence.counts
            paid += (counts.gradients - 1 + counts.jvps) * stage.solver.batch_size
        return grad, paid

    grads, paid = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), runs))
    return measure.Sample(np.asarray(grads).reshape(runs, -1), float(paid[0]))

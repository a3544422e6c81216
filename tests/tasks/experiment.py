"""An experiment of `conf/experiment`, run as the command line would, without its files."""

from dataclasses import dataclass
from typing import Any

import bilevel as bl
from experiments.cli import hydra_compat
from experiments.runs.job import Job


@dataclass(frozen=True)
class Outcome:
    """Its job, what :func:`bilevel.tune` found, and the test metrics."""

    job: Job
    result: bl.Result
    metrics: dict[str, float]


def job_of(name: str, *overrides: str) -> Job:
    """The job of `experiment=NAME`."""
    settings: dict[str, Any] = hydra_compat.plain(
        hydra_compat.compose([f"experiment={name}", *overrides])
    )
    return Job.of(settings)


def run_experiment(name: str, *overrides: str) -> Outcome:
    """Run `experiment=NAME` to its end."""
    job = job_of(name, *overrides)
    settings = job.settings
    result = job.tune(job.task.data, steps=settings["steps"], key=job.key, every=settings["every"])
    assert not result.diverged, result.message
    return Outcome(job, result, job.task.metrics(result.hyper, result.params))

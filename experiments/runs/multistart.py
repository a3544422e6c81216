"""Where a run starts, and rows set aside to end it: `starts=8`, `early_stopping=15`."""

import inspect
import warnings
from typing import Any

import jax
import numpy as np

import bilevel as bl
from experiments.cli.targets import locate
from experiments.common.errors import BadInputError

SHARE = 0.5  # of the validation rows


def with_second_part(node: dict[str, Any], patience: int | None) -> dict[str, Any]:
    """The settings of a task that sets validation rows aside, where early stopping asks for it.

    Raises
    ------
    BadInputError : the task knows no second part.
    """
    if patience is None:
        return node
    target = locate(node["_target_"], "task._target_")
    if "second" not in inspect.signature(target).parameters:
        raise BadInputError(
            f"early_stopping: {node['_target_']} sets no second validation part aside. Use "
            "task=ridge_holdout or task=logistic task.table.outer=holdout, or early_stopping=null."
        )
    return {"second": SHARE} | node


def race(job: Any) -> tuple[bl.Result, dict[str, Any]]:
    """The best of several starts after some steps, and how it was chosen.

    Raises
    ------
    BadInputError : with adaptive work, whose level no common program has.
    """
    task, settings = job.task, job.settings
    if settings["adaptive"]:
        raise BadInputError("starts: several points move in one program, so adaptive=true cannot.")
    points = bl.population(task.problem, task.hyper, settings["starts"], seed=settings["seed"])
    steps = min(settings["start_steps"], settings["steps"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bl.DivergenceWarning)  # said in what is returned
        found = bl.restarts(
            task.problem,
            job.estimator,
            job.outer,
            points,
            task.params,
            task.data,
            steps=steps,
            key=job.key,
            warm_start=settings["warm_start"],
            hooks=job.hooks,
        )
    jax.block_until_ready(found.best.state)
    about = {
        "steps": steps,
        "values": np.asarray(found.values, float).tolist(),
        "chosen": int(found.index),
        "message": found.message,
    }
    return found.best, about

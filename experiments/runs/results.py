"""What a run leaves behind: `result.json` and the history."""

import csv
import functools
import importlib.metadata
import importlib.util
import io
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevel.core import Estimate
from bilevel.estimators.warn import describe_error
from bilevel.tuning.evidence import absolute_error, find_largest_known, is_unreliable
from experiments.cli.hydra_compat import CONF
from experiments.common.files import write_whole
from experiments.reports.table import COUNTS
from experiments.runs.trajectory import columns
from experiments.storage.result_file import PRUNED


def measured(job: Any, run: Any, model: Any = None) -> dict[str, Any]:
    """The part of `result.json` that comes from the run: values, evidence, cost, metrics.

    Of the `model`, if the task has one, its coefficients.

    `seconds` is the time of the outer loop without `compile_seconds`; both include earlier parts
    of a resumed run. `counts` are totals over the run.
    """
    history, task, state = run.history, job.task, run.state
    best = state.memory.get("EarlyStopping")
    params = state.lower.params if best is None else best.params
    rows = len(history.get("value", ()))
    estimate = state.estimate if rows else None
    facts: dict[str, Any] = {
        "value_start": float(history["value"][0]) if rows else None,
        "value": run.value,
        "steps": run.done,
        "stopped": run.stopped,
        "starts": run.starts,
        "evidence": _evidence(estimate.evidence) if estimate else {},
        "relative_error": float(estimate.relative_error) if estimate else None,
        "error_of_largest": _error_of_largest(estimate, history, job.settings)
        if estimate
        else None,
        "unknown": list(estimate.unknown) if estimate else [],
        "counts": {n: int(history[n].sum(dtype=np.int64)) for n in COUNTS if n in history},
        "checks": run.checks,
        "seconds": run.watch.running,
        "compile_seconds": run.watch.compiling,
        "hyper_summary": _floats(task.describe(run.hyper)),
        "test_metrics": _floats(task.metrics(run.hyper, params)),
        "baselines": {},
        "notes": dict(task.notes),
    }
    if model is not None and (coefficients := model.coefficients):
        facts["coefficients"] = coefficients
    if (choose := getattr(job.estimator, "choose", None)) is not None:
        facts["chosen"] = choose(task.problem, run.hyper, state.lower.params, task.data).reason
    if job.settings["baselines"] and not run.pruned:
        baselines = task.baselines()
        facts["baselines"] = {name: _floats(metrics) for name, metrics in baselines.items()}
    return facts


def status(
    facts: dict[str, Any], message: str | None, bad: str | None = None, *, pruned: bool = False
) -> tuple[str, str | None]:
    """`("completed", None)`, or `("diverged", why)`: also where any number is not finite.

    A run that early stopping has ended is complete, with its message; one that a search has is
    `pruned`. What is `bad` about the last hypergradient makes a run that has not diverged
    `unreliable`.
    """
    if message is not None and not facts["stopped"] and not pruned:
        return "diverged", message
    numbers = {"value": facts["value"]} | facts["test_metrics"] | facts["hyper_summary"]
    if lost := [name for name, number in numbers.items() if not math.isfinite(number)]:
        return "diverged", f"not finite at the end of the run: {', '.join(lost)}."
    if pruned:
        return PRUNED, message
    if bad is not None:
        # What `tune` says of a run that ends by itself has it already.
        before = "" if message is None else message.removesuffix(bad).rstrip()
        return "unreliable", f"{before} {bad}".lstrip()
    return "completed", message


def bad_evidence(
    estimate: Estimate, history: dict[str, np.ndarray], settings: dict[str, Any]
) -> str | None:
    """Number, cause and cure where the known error is above `max_error`; `None` where it is not.

    By the rule of `tune`: an error that is small beside the largest hypergradient is let pass.
    """
    off = settings["evidence"] == "off"
    if off or not is_unreliable(estimate, history, settings["max_error"]):
        return None
    return describe_error(estimate)


def _error_of_largest(
    estimate: Estimate, history: dict[str, np.ndarray], settings: dict[str, Any]
) -> float | None:
    """The last error as a share of the largest known hypergradient; `None` where none is known."""
    largest = find_largest_known(history, settings["max_error"])
    return absolute_error(estimate) / largest if largest > 0 else None


def versions() -> dict[str, Any]:
    """What made the result: packages, Python, device, and the commit of the checkout."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, Any]:
    """Looked up once: what this process runs is what it began with."""
    packages = ("jax", "jaxlib", "numpy", "optax", "flax", "scikit-learn", "hydra-core")
    device = jax.devices()[0]
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "device": f"{device.platform} {device.device_kind}",
        "commit": _commit(),
    }


def write_history(folder: Path, history: dict[str, np.ndarray], labels: list[str]) -> Path:
    """Write `history.parquet`, or `history.csv` where pyarrow is absent; one row per outer step."""
    table = columns(history, labels)
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        path = folder / "history.parquet"
        rows = pyarrow.table(table)
        write_whole(path, lambda file: pyarrow.parquet.write_table(rows, file))
        return path
    path, text = folder / "history.csv", io.StringIO()
    rows = [table, *zip(*(column.tolist() for column in table.values()), strict=True)]
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
    return path


def _evidence(evidence: Any) -> dict[str, Any]:
    """Residuals as they are; errors per hyperparameter as one norm over all of them."""
    facts = {}
    names = ("inner_residual", "linear_residual", "derivative_residual", "residual_error")
    for name in (*names, "standard_error", "bias"):
        if (entry := getattr(evidence, name)) is not None:
            facts[name] = float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(entry))))
    return facts


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(number) for name, number in metrics.items()}


def _commit() -> str | None:
    command = ["git", "-C", str(CONF.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

"""One run from its settings to its files; the first place where JAX is imported."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

import bilevel as bl
from experiments.common.errors import BadInputError, DamagedError
from experiments.common.files import set_aside, write_json
from experiments.runs import plots, results, summary
from experiments.runs.job import Job, Run
from experiments.runs.workers import about
from experiments.storage import checkpoint
from experiments.storage.result_file import FINISHED, MODEL, RESULT, is_about_run, read_result
from experiments.storage.resume import refuse_other
from tasks.models import save_model


def perform(
    settings: dict[str, Any],
    folder: Path,
    facts: dict[str, Any],
    console: Console,
    into: Path | None = None,
) -> dict[str, Any]:
    """Run, from the checkpoint in `folder` if there is one; returns what `result.json` holds.

    `facts` is what is known beforehand, and part of the result. A result with the status
    `running` is written at once. Files go to `folder`, or to another one, `into`.
    """
    with configured(settings), bl.extend.RememberInterrupts():
        job = Job.of(settings)
        facts |= {"task": job.task.name, "seed": settings["seed"], "settings": settings}
        facts |= {"versions": results.versions()}
        run = _begin(job, folder, console)
        if run.done:
            facts |= _earlier_versions(folder, facts["versions"], console)
        folder = into or folder
        write_json(folder / RESULT, facts | {"status": "running"})
        with bl.extend.RememberInterrupts() as interrupts:
            try:
                job.go(run, folder, console)
                interrupts.check()
                return conclude(job, run, folder, facts, console)
            except KeyboardInterrupt:
                write_json(folder / RESULT, facts | {"status": "interrupted", "steps": run.done})
                raise


def _earlier_versions(folder: Path, now: dict[str, Any], console: Console) -> dict[str, Any]:
    """What made the part of the run that is there; says so where it is not what goes on with it."""
    try:
        result = read_result(folder / RESULT)
    except BadInputError:
        return {}
    earlier = [*result.get("versions_before", []), result.get("versions", {})]
    before = earlier[-1]
    if changed := [name for name in now if name in before and before[name] != now[name]]:
        text = ", ".join(f"{name} {now[name]} (before {before[name]})" for name in changed)
        console.print(
            f"other versions  {text}: the numbers may differ from those of an uninterrupted run",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return {"versions_before": earlier}
    return {"versions_before": earlier[:-1]} if earlier[:-1] else {}


def _begin(job: Job, folder: Path, console: Console) -> Run:
    path = folder / checkpoint.PLACE
    if not path.is_file():
        return Run()
    try:
        saved = checkpoint.load(path)
        if not is_about_run(saved.about) or "value" not in saved.history:
            raise DamagedError(f"{path}: this checkpoint is damaged (it is that of no run).")
    except DamagedError as error:
        set_aside(path, str(error))
        return Run()  # from the first step: the same numbers again
    refuse_other(saved.about["settings"], job.settings, folder)
    run = job.resumed(saved)
    console.print(f"going on after {run.done} of {job.settings['steps']} outer steps")
    return run


def conclude(
    job: Job, run: Run, folder: Path, facts: dict[str, Any], console: Console
) -> dict[str, Any]:
    """Metrics, baselines, files, and the summary."""
    fitted = _model(job, run)
    measured = results.measured(job, run, fitted)
    bad = None
    if run.done:
        bad = results.bad_evidence(run.state.estimate, run.history, job.settings)
    status, message = results.status(measured, run.message, bad, pruned=run.pruned)
    result = facts | measured | {"status": status, "message": message, "process": about()}
    files = [folder / RESULT]
    if fitted is not None and status in FINISHED:
        save_model(fitted, folder / MODEL)
        files.append(folder / MODEL)
    if run.done:
        files.append(results.write_history(folder, run.history, job.labels))
        if job.settings["plot"]:
            chosen = ", ".join(f"{k} {v}" for k, v in sorted(facts["choices"].items()))
            title = f"{result['task']} ({chosen}): {status}"
            plots.curves(folder / "curves.png", run.history, job.labels, title)
            files.append(folder / "curves.png")
            if job.task.picture is not None:
                params = run.state.lower.params
                plots.picture(folder / "picture.png", job.task.picture, run.hyper, params)
                files.append(folder / "picture.png")
    write_json(folder / RESULT, result)
    summary.show(console, result, files)
    return result


def _model(job: Job, run: Run) -> Any:
    """The model that the run's hyperparameters give; none where the task's result is no model."""
    if job.task.model is None or not run.done or (run.message is not None and not run.stopped):
        return None
    return job.task.model(run.hyper, run.state.lower.params)


@contextlib.contextmanager
def configured(settings: dict[str, Any]) -> Iterator[None]:
    """Precision for this run, and the folder in which compiled programs are kept.

    Matrix products are those of the dtype: left alone, JAX rounds float32 factors to ten bits on
    many accelerators, and no residual that is computed in the same way shows it.
    """
    cache = settings["compile_cache"]
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(cache).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    precision = settings["precision"]
    wide = bool(jax.config.read("jax_enable_x64")) if precision is None else precision == "float64"
    products = os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    with jax.enable_x64(wide), jax.default_matmul_precision(products):
        yield

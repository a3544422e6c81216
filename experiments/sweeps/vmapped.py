"""Many runs in one process through one compiled program: from their settings to their files."""

import io
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import bilevel as bl
from experiments.common.errors import BadInputError, DamagedError
from experiments.common.files import set_aside
from experiments.runs import results
from experiments.runs.job import Job, Run
from experiments.runs.progress import Display
from experiments.runs.session import conclude, configured
from experiments.runs.timing import Stopwatch
from experiments.runs.verify import against_exact
from experiments.storage import checkpoint
from experiments.storage.lock import held
from experiments.storage.resume import finished, refuse_other
from experiments.sweeps.batched_jobs import Stack, convergence_of, pick
from experiments.sweeps.seed_jobs import Lane

UNSAID = "the inner solver diverged in a run of many; run it alone to be told why."


@dataclass
class Group:
    """What all runs have reached: the stacked state, and a row of the history per step and run."""

    state: Any = None
    history: dict[str, np.ndarray] = field(default_factory=dict)
    watch: Stopwatch = field(default_factory=Stopwatch)
    done: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    checks: list[list[dict[str, float]]] = field(default_factory=list)
    messages: list[str | None] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)


def perform(
    lanes: list[Lane], folder: Path, facts: dict[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Make all runs that are missing; returns the results of all lanes, in order."""
    missing = [lane for lane in lanes if not finished(lane.folder, lane.settings)]
    if missing:
        with configured(missing[0].settings):
            saved = _saved(folder)
            if saved and {lane.folder.name for lane in missing} <= set(saved.about["lanes"]):
                together = [lane for lane in lanes if lane.folder.name in saved.about["lanes"]]
                refuse_other(saved.about["settings"], together[0].settings, folder)
            else:
                saved, together = None, missing
            jobs = [Job.of(lane.settings) for lane in together]
            stack = Stack(jobs)
            group = _begin(stack, saved, together)
            console.print(f"{len(jobs)} runs in one program, {int(group.done.max())} steps done")
            _go(stack, jobs, group, together, folder, console)
            _conclude(stack, jobs, group, together, facts)
    else:
        console.print("finished already, all of them")
    return [finished(lane.folder, lane.settings) or {} for lane in lanes]


def _saved(folder: Path) -> checkpoint.Checkpoint | None:
    path = folder / checkpoint.PLACE
    try:
        return checkpoint.load(path) if path.is_file() else None
    except DamagedError as error:
        set_aside(path, str(error))
        return None


def _begin(stack: Stack, saved: checkpoint.Checkpoint | None, lanes: list[Lane]) -> Group:
    n = len(lanes)
    if saved is None:
        none = {"messages": [None] * n, "converged": [False] * n}
        return Group(done=np.zeros(n, int), checks=[[] for _ in lanes], **none)
    about, state = saved.about, checkpoint.restore(saved, stack.template())
    if about["lanes"] != [lane.folder.name for lane in lanes]:
        raise BadInputError("vmap: the runs are in another order than in the folder's checkpoint.")
    watch = Stopwatch(about["seconds"], about["compile_seconds"])
    done, steps = np.asarray(state.step), lanes[0].settings["steps"]
    messages, converged = about["messages"], about["converged"]
    checks = [
        [check for check in own if ended or reached >= steps or check["step"] == 0]
        for own, reached, ended in zip(about["checks"], done, converged, strict=True)
    ]
    return Group(state, saved.history, watch, done, checks, messages, converged)


def _go(
    stack: Stack, jobs: list[Job], group: Group, lanes: list[Lane], folder: Path, console: Console
) -> None:
    steps, every = (jobs[0].settings[name] for name in ("steps", "every"))
    with Display(console, jobs[0].settings["progress"], steps, int(group.done.max())) as display:
        while alive := [i for i, m in enumerate(group.messages) if m is None]:
            reached = int(group.done[alive[0]])
            if reached >= steps:
                return
            # The very first step alone, as in a run of its own: a check belongs to it.
            count = min(every, steps - reached) if reached else 1
            with group.watch:
                if group.state is None:
                    group.state = stack.begin(stack.numbers)
                state, stop, rows = stack.block(stack.numbers, group.state, count)
                jax.block_until_ready(state)
            _take(stack, jobs, group, state, np.asarray(stop.diverged), rows, count)
            _save(group, lanes, folder)
            display.update(int(group.done.max()), shown(group.history, alive))


def shown(history: dict[str, np.ndarray], alive: list[int]) -> dict[str, np.ndarray]:
    """Means over the runs that go on, without trials that were taken back: they have no value."""
    fine = np.isfinite(history["value"][alive])
    with np.errstate(invalid="ignore"):  # all were taken back: NaN
        return {
            name: np.sum(rows[alive], axis=0, where=fine) / fine.sum(axis=0)
            for name, rows in history.items()
            if rows.ndim == fine.ndim
        }


def _take(
    stack: Stack,
    jobs: list[Job],
    group: Group,
    state: Any,
    diverged: np.ndarray,
    rows: Any,
    count: int,
) -> None:
    """Add a block of steps; a run that has diverged now is told why."""
    for name, new in rows.items():
        new = np.asarray(new)[:, :count]
        old = group.history.get(name)
        group.history[name] = new if old is None else np.concatenate([old, new], axis=1)
    first = not group.done.any()
    group.state, group.done = state, np.asarray(state.step)
    steps = jobs[0].settings["steps"]
    found = None
    for i, job in enumerate(jobs):
        if group.messages[i] is not None:
            continue
        own = pick(state, i)
        for hook in convergence_of(job):
            if not diverged[i] and hook.has_converged(own):
                group.converged[i], group.messages[i] = True, hook.explain(own)
        if group.done[i] and (first or group.converged[i] or group.done[i] >= steps):
            found = found or stack.results(state, diverged)
            group.checks[i] += against_exact(job.task, found[i])
        if diverged[i]:
            group.messages[i] = _why(job, own)


def _why(job: Job, state: Any) -> str:
    """The refused step once more, alone: it is explained there."""
    with warnings.catch_warnings():
        for kind in (bl.DivergenceWarning, bl.EvidenceWarning):  # the summary says it
            warnings.simplefilter("ignore", kind)
        every = job.settings["every"]
        result = job.tune(job.task.data, steps=1, key=job.key, state=state, every=every)
    return result.message or UNSAID


def _save(group: Group, lanes: list[Lane], folder: Path) -> None:
    about = {
        "settings": lanes[0].settings,
        "lanes": [lane.folder.name for lane in lanes],
        "seconds": group.watch.running,
        "compile_seconds": group.watch.compiling,
        "checks": group.checks,
        "messages": group.messages,
        "converged": group.converged,
    }
    checkpoint.save(folder / checkpoint.PLACE, group.state, group.history, about)


def _conclude(
    stack: Stack, jobs: list[Job], group: Group, lanes: list[Lane], facts: dict[str, Any]
) -> None:
    """The files of every run, as it would have left them alone; seconds are shared evenly."""
    ended = zip(group.messages, group.converged, strict=True)
    diverged = np.array([message is not None and not stands for message, stands in ended])
    n, versions = len(jobs), results.versions()
    watch = Stopwatch(group.watch.running / n, group.watch.compiling / n)
    quiet = Console(file=io.StringIO())
    found = stack.results(group.state, diverged)
    for i, (lane, job, result) in enumerate(zip(lanes, jobs, found, strict=True)):
        history = {name: rows[i, : group.done[i]] for name, rows in group.history.items()}
        if not diverged[i]:
            result = stack.settled(job, replace(result, history=history))
        about = group.checks[i], group.messages[i], group.converged[i]
        run = Run(result.state, result.hyper, history, watch, *about)
        own = {"overrides": lane.overrides, "command": lane.command, "task": job.task.name}
        own |= {"versions": versions, "seed": lane.settings["seed"], "settings": lane.settings}
        with held(lane.folder):
            if not finished(lane.folder, lane.settings):
                lane.save_config()
                job.save(run, lane.folder)
                conclude(job, run, lane.folder, facts | own, quiet)

"""One run: the task is tuned in blocks of outer steps, each followed by a checkpoint."""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import bilevel as bl
from bilevel.estimators import carry_model
from bilevel.tuning.streaming import open_streams
from experiments.cli.targets import instantiate, refuse_unknown
from experiments.common.errors import BadInputError
from experiments.runs import mesh as meshes
from experiments.runs import multistart, pruning
from experiments.runs.compiling import one_first
from experiments.runs.progress import Display
from experiments.runs.timing import Stopwatch
from experiments.runs.trajectory import Trajectory, names
from experiments.runs.verify import against_exact
from experiments.storage import checkpoint

RUN = 2  # the key stream of the run; a task draws its data and its start from the integer itself


@dataclass
class Run:
    """What a run has reached, all of it in its checkpoint.

    Parameters
    ----------
    state, hyper : of the last :class:`bilevel.Result`; the hyperparameters after the last update.
    history, checks : rows so far; distances from the closed form so far.
    watch : the time so far.
    message : why the run ended before its steps, if it did; ``stopped`` if early stopping or `tol`,
        ``pruned`` if the search of which it is a trial.
    starts : how the start point was chosen, if from several.
    """

    state: Any = None
    hyper: Any = None
    history: dict[str, np.ndarray] = field(default_factory=dict)
    watch: Stopwatch = field(default_factory=Stopwatch)
    checks: list[dict[str, float]] = field(default_factory=list)
    message: str | None = None
    stopped: bool = False
    pruned: bool = False
    starts: dict[str, Any] | None = None

    @property
    def done(self) -> int:
        """Outer steps done."""
        return 0 if self.state is None else int(self.state.step)

    @property
    def value(self) -> float | None:
        """The outer value so far; a rule may end with an earlier point than the last."""
        values = self.history.get("best", self.history.get("value"))
        return None if values is None or not len(values) else float(values[-1])


@dataclass(frozen=True)
class Job:
    """The nouns of a run, made from its settings."""

    task: Any
    estimator: Any
    outer: Any
    settings: dict[str, Any]

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Job":
        """Instantiate task, estimator (with its solver) and outer optimiser."""
        trust = settings["trust"]
        refuse_unknown(settings["solver"], "solver", trust)  # else the estimator's copy is blamed
        nodes = {name: settings[name] for name in ("task", "estimator", "outer")}
        nodes["task"] = multistart.with_second_part(nodes["task"], settings["early_stopping"])
        mesh = meshes.devices(settings["mesh"]["data"])
        # Rows that are to be spread are made in the host's memory: no device need hold them all.
        with jax.default_device(mesh and jax.local_devices(backend="cpu")[0]):
            task, estimator, outer = (
                instantiate(node, name, trust) for name, node in nodes.items()
            )
        task = replace(task, problem=replace(task.problem, evidence=settings["evidence"]))
        asked = {"starts": settings["starts"] > 1, "mesh.data": mesh is not None}
        refuse_together(task, [name for name, yes in asked.items() if yes])
        return cls(meshes.spread(task, mesh) if mesh else task, estimator, outer, settings)

    @property
    def key(self) -> jax.Array:
        """The run's random key."""
        return jax.random.fold_in(jax.random.key(self.settings["seed"]), RUN)

    @property
    def spread(self) -> bool:
        """Whether the rows lie on several devices."""
        return self.settings["mesh"]["data"] is not None

    @property
    def labels(self) -> list[str]:
        """Names of the hyperparameters, one per entry of a row of the trajectory."""
        return names(self.task.hyper, self.task.notes.get("penalties", ()))

    def tune(
        self,
        data: bl.Data,
        *,
        hooks: list[Any] | None = None,
        every: int = 32,
        compare: bool = True,
        **how: Any,
    ) -> bl.Result:
        """:func:`bilevel.tune` on this job, a compiled call for every so many steps."""
        task, warm_start = self.task, self.settings["warm_start"]
        # One length of a block, also for the first step alone: one program.
        blocks = bl.Blocks(min(every, 32), compare=compare)
        hooks = [*(self.hooks if hooks is None else hooks), blocks]
        return bl.tune(
            task.problem,
            self.estimator,
            self.outer,
            task.hyper,
            task.params,
            data,
            model_state=task.model_state,
            **({"warm_start": warm_start, "hooks": hooks, "tol": None} | how),
        )

    @property
    def hooks(self) -> list[Any]:
        """What the run does beside its steps."""
        settings = self.settings
        hooks: list[Any] = [bl.Record(Trajectory()), bl.Divergence(settings["limit"])]
        if settings["adaptive"]:
            hooks.append(bl.Adaptive())
        if (patience := settings["early_stopping"]) is not None:
            hooks.append(bl.EarlyStopping(self.task.problem.outer, self.task.second, patience))
        given = tuple(hooks)
        return [*bl.extend.add_convergence(given, settings["tol"], self.outer, self.estimator)]

    def template(self) -> Any:
        """Structure, shapes and dtypes of `(state, hyper)`; traced, nothing is computed."""
        task = self.task
        hooks = tuple(hook for hook in self.hooks if not isinstance(hook, bl.Divergence))

        estimator, data = self.estimator, task.data
        if is_streamed(task):
            estimator, data, _ = open_streams(data, estimator, None, 1, adaptive=False)

        def begun(data: bl.Data, key: jax.Array) -> Any:
            hyper, params = bl.extend.strip_weak_types((task.hyper, task.params))
            at = hyper, params, data, key, None, task.model_state
            carried = carry_model(task.problem, estimator, *at)
            loop = bl.Loop(task.problem, carried, self.outer, data, hooks)
            return loop.init(hyper, params, key), hyper

        return jax.eval_shape(begun, data, self.key)

    def resumed(self, saved: checkpoint.Checkpoint) -> Run:
        """The run that a checkpoint holds."""
        about = saved.about
        state, hyper = checkpoint.restore(saved, self.template())
        watch = Stopwatch(about["seconds"], about["compile_seconds"])
        ended = about["message"], about.get("stopped", False), False, about.get("starts")
        checks = about["checks"]
        if int(state.step) < self.settings["steps"]:  # an end that is no longer one
            checks = [check for check in checks if check["step"] == 0]
        return Run(state, hyper, saved.history, watch, checks, *ended)

    def go(self, run: Run, folder: Path, console: Console) -> None:
        """Advance `run` to the end of its steps, or to where it diverges; `run` is always whole."""
        data = self.task.data
        if not (self.spread or is_streamed(self.task)):
            data = jax.device_put(data)
        steps, every = self.settings["steps"], self.settings["every"]
        with Display(console, self.settings["progress"], steps, run.done) as display:
            if not run.done and self.settings["starts"] > 1:
                with run.watch:
                    found, run.starts = multistart.race(self)
                self._take(run, found)
            while run.done < steps and run.message is None:
                if reason := pruning.find_reason(run.done, run.value, steps):
                    run.message, run.pruned = reason, True
                    break
                # The very first step alone: the check against a closed form belongs to the start.
                count = min(every, steps - run.done) if run.done else 1
                with one_first(self.settings), run.watch, warnings.catch_warnings():
                    for kind in (bl.DivergenceWarning, bl.EvidenceWarning):  # the summary says it
                        warnings.simplefilter("ignore", kind)
                    last = run.done + count >= steps
                    how = {"state": run.state, "every": every, "compare": last}
                    result = self.tune(data, steps=count, key=self.key, **how)
                    jax.block_until_ready(result.state)
                self._take(run, result)
                self.save(run, folder)
                display.update(run.done, run.history)

    def _take(self, run: Run, result: bl.Result) -> None:
        """Add what another block of steps has given."""
        if self.spread:
            result = meshes.fetched(result)
        first = not run.done
        rows = {name: np.asarray(column) for name, column in result.history.items()}
        run.history = {
            name: np.concatenate([run.history[name], new]) if name in run.history else new
            for name, new in rows.items()
        }
        run.state, run.hyper = result.state, result.hyper
        run.stopped = bool(result.stopped) or bool(result.converged)
        # A message about the evidence of one block does not end the run.
        run.message = result.message if bool(result.diverged) or run.stopped else None
        if run.done and (first or run.stopped or run.done >= self.settings["steps"]):
            run.checks += against_exact(self.task, result)

    def save(self, run: Run, folder: Path) -> None:
        """Write the checkpoint of `run`."""
        about = {
            "settings": self.settings,
            "seconds": run.watch.running,
            "compile_seconds": run.watch.compiling,
            "checks": run.checks,
            "message": run.message,
            "stopped": run.stopped,
            "starts": run.starts,
        }
        path = folder / checkpoint.PLACE
        checkpoint.save(path, (run.state, run.hyper), run.history, about)


def is_streamed(task: Any) -> bool:
    """Whether a level of the task's data is read minibatch by minibatch."""
    return bl.Stream in (type(task.data.inner), type(task.data.outer))


def refuse_together(task: Any, asked: list[str]) -> None:
    """Raise where several points, seeds or devices are to share what only one run can hold."""
    if asked and (is_streamed(task) or task.model_state is not None):
        raise BadInputError(
            f"{', '.join(asked)}: {task.name} reads a stream or carries a model state, and is one "
            "run on one device. Sweep over seeds instead: -m 'seed=range(3)'"
        )

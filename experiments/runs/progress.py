"""What is shown while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_LINES = 10  # plain lines per run


class Display:
    """Outer step, value and evidence of a run; `how` is one of `auto`, `plain`, `off`."""

    def __init__(self, console: Console, how: str, steps: int, done: int) -> None:
        self.console = console
        self.how = "live" if how == "auto" and console.is_terminal else how
        self.steps = steps
        self.first = self.done = done
        self.stride = max(1, math.ceil(steps / _LINES))
        self.bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> "Display":
        self.start = time.perf_counter()
        if self.how == "live":
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            progress = Progress(*columns, console=self.console)
            progress.start()
            task = progress.add_task(
                "tuning", total=self.steps, completed=self.done, numbers="compiling"
            )
            self.bar = progress, task
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar[0].stop()

    def update(self, done: int, history: dict[str, Any]) -> None:
        """Show the last row of `history`, which `done` outer steps have led to."""
        if not done:
            return  # diverged in the very first step
        before, self.done = self.done, done
        if self.bar:
            progress, task = self.bar
            progress.update(task, completed=done, numbers=numbers(history))
        elif self.how != "off" and self._due(before):
            seconds = time.perf_counter() - self.start
            width = len(str(self.steps))
            self.console.print(
                f"step {done:{width}}/{self.steps}  {numbers(history)}  {seconds:.1f} s",
                highlight=False,
            )

    def _due(self, before: int) -> bool:
        """Whether these steps call for a plain line: the first, the last, and some between."""
        passed = self.done // self.stride > before // self.stride
        return before == self.first or passed or self.done == self.steps


def numbers(history: dict[str, Any]) -> str:
    """Value, hypergradient norm and residuals of the last row, in one line.

    A row without a finite value, of a run that goes on, is a trial that the rule has taken back.
    """
    if not math.isfinite(float(history["value"][-1])):
        finite = [float(value) for value in history["value"] if math.isfinite(float(value))]
        best = f", best value {min(finite):.4g}" if finite else ""
        return f"the inner solver diverged: taken back, a smaller step is tried{best}"
    labels = {
        "value": "value",
        "grad_norm": "|hypergradient|",
        "inner_residual": "inner residual",
        "linear_residual": "linear residual",
    }
    shown = [name for name in labels if name in history]
    return "  ".join(f"{labels[name]} {float(history[name][-1]):.4g}" for name in shown)

"""What error costs which estimator, as data, as a table and as a figure."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from bilevel.core import Estimator


class PricedRun(NamedTuple):
    """The cheapest run of one estimator: predicted ``error``, ``cost``, or a ``verdict`` why none.

    ``estimator`` is ready to use. Errors are relative, root mean square; costs are gradients of
    single examples, infinite where there is no run.
    """

    estimator: Estimator | None
    error: float
    cost: float
    verdict: str = ""


@dataclass(frozen=True)
class Comparison:
    """What error costs which estimator; ``str(comparison)`` is a table.

    Parameters
    ----------
    tolerances : the errors that are asked for.
    settings : by estimator, a :class:`PricedRun` for each of them.
    """

    tolerances: tuple[float, ...]
    settings: dict[str, tuple[PricedRun, ...]]

    def best(self, tolerance: float) -> str:
        """Return the name of the cheapest estimator at one of the ``tolerances``.

        Raises
        ------
        ValueError : another tolerance; one that no estimator meets.
        """
        if tolerance not in self.tolerances:
            raise ValueError(
                f"comparison.best: tolerance must be one of {self.tolerances}, got {tolerance}."
            )
        k = self.tolerances.index(tolerance)
        name = min(self.settings, key=lambda name: self.settings[name][k].cost)
        if self.settings[name][k].cost == math.inf:
            raise ValueError(f"comparison.best: no estimator meets tolerance={tolerance} here.")
        return name

    def __str__(self) -> str:
        """Return the costs, the cheapest of every column marked, and why there are none."""
        width = max(map(len, self.settings)) + 2
        head = f"{'relative error':<{width}}" + "".join(f"{t:>10g}" for t in self.tolerances)
        lines, reasons = [head], []
        columns = zip(*self.settings.values(), strict=True)
        least = [min(one.cost for one in column) for column in columns]
        for name, row in self.settings.items():
            cells = map(_cell, row, least)
            lines.append(f"{name:<{width}}" + "".join(cells))
            missing = next((one.verdict for one in row if one.verdict), "")
            if missing:
                reasons.append(f"- {name}: {missing}")
        return "\n".join([*lines, *reasons])

    def draw(self, axes: Any) -> None:
        """Draw error against gradients on ``axes`` of matplotlib, one line an estimator."""
        for name, row in self.settings.items():
            found = [one for one in row if one.cost < math.inf]
            axes.plot([one.cost for one in found], [one.error for one in found], "o-", label=name)
        axes.set(xscale="log", yscale="log", xlabel="gradients of single examples")
        axes.set(ylabel="relative error of the hypergradient, predicted")
        axes.legend()


def _cell(one: PricedRun, least: float) -> str:
    if one.cost == math.inf:
        return f"{'-':>10}"
    return f"{one.cost:>9.2g}" + ("*" if one.cost == least else " ")

"""A solver's step size and momentum as hyperparameters: one rate for each step."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.spaces import Box, Log
from bilevel.utils import PyTree


@dataclass(frozen=True)
class Rate:
    """``step_size`` of a solver: ``hyper["rate"][k]`` at step k, after the last step the last."""

    def __call__(self, count: Array, hyper: PyTree) -> Array:
        """Return the rate of one step."""
        rates = hyper["rate"]
        return rates[jnp.minimum(count, len(rates) - 1)]


@dataclass(frozen=True)
class Momentum:
    """``momentum`` of a solver: ``hyper["momentum"]``, one for all steps."""

    def __call__(self, count: Array, hyper: PyTree) -> Array:
        return hyper["momentum"]


def space(hyper: PyTree, largest: float) -> dict[str, Any]:
    """Return the space of rates, none above ``largest``: beyond 2 / curvature SGD diverges."""
    every = {"rate": Log(high=largest, closed="high"), "momentum": Box(0.0, 1.0)}
    return {name: every[name] for name in hyper}


def describe(hyper: PyTree) -> dict[str, float]:
    """Return mean rates of the beginning, the middle and the end, and the momentum."""
    rates = np.asarray(hyper["rate"], float)
    parts = dict(zip(("first", "middle", "last"), np.array_split(rates, 3), strict=True))
    facts = {f"mean rate, {name} third": float(part.mean()) for name, part in parts.items()}
    if "momentum" in hyper:
        facts["momentum"] = float(hyper["momentum"])
    return facts


def picture(figure: Any, hyper: PyTree, params: PyTree, **beside: np.ndarray) -> None:
    """Draw the rate of every step, and those of other schedules in grey."""
    del params
    place = figure.subplots()
    for style, (name, rates) in zip(("--", ":"), beside.items(), strict=False):
        place.plot(rates, style, color="0.5", label=name)
    place.plot(np.asarray(hyper["rate"], float), label="found")
    place.set(xlabel="step", ylabel="learning rate")
    place.legend()

"""A solver's step size and momentum as hyperparameters, and an Adam that keeps rates in bounds."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

PyTree = Any


@dataclass(frozen=True)
class Rate:
    """``step_size`` of a solver: ``exp(log_rate[k])`` at step k, after the last step the last."""

    def __call__(self, count: Array, hyper: PyTree) -> Array:
        """The rate of one step."""
        rates = hyper["log_rate"]
        return jnp.exp(rates[jnp.minimum(count, len(rates) - 1)])


@dataclass(frozen=True)
class Momentum:
    """``momentum`` of a solver: ``1 / (1 + exp(-h["logit_momentum"]))``, one for all steps."""

    def __call__(self, count: Array, hyper: PyTree) -> Array:
        return jax.nn.sigmoid(hyper["logit_momentum"])


def bounded_adam(learning_rate: Any, most: float) -> optax.GradientTransformation:
    """Adam; a rate above ``most`` is put back there, as rates beyond 2 / curvature diverge."""
    adam = optax.adam(learning_rate)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = adam.update(updates, state, params)
        room = jnp.log(most) - params["log_rate"]
        return updates | {"log_rate": jnp.minimum(updates["log_rate"], room)}, state

    return optax.GradientTransformation(adam.init, update)


def describe(hyper: PyTree) -> dict[str, float]:
    """Mean rates of the beginning, the middle and the end, and the momentum."""
    rates = np.exp(np.asarray(hyper["log_rate"], float))
    parts = dict(zip(("first", "middle", "last"), np.array_split(rates, 3), strict=True))
    facts = {f"mean rate, {name} third": float(part.mean()) for name, part in parts.items()}
    if "logit_momentum" in hyper:
        facts["momentum"] = float(jax.nn.sigmoid(hyper["logit_momentum"]))
    return facts


def picture(figure: Any, hyper: PyTree, params: PyTree, **beside: np.ndarray) -> None:
    """The rate of every step, and those of other schedules in grey."""
    del params
    place = figure.subplots()
    for style, (name, rates) in zip(("--", ":"), beside.items(), strict=False):
        place.plot(rates, style, color="0.5", label=name)
    place.plot(np.exp(np.asarray(hyper["log_rate"], float)), label="found")
    place.set(xlabel="step", ylabel="learning rate")
    place.legend()

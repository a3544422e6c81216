r"""The noisy quadratic, whose loss under SGD is known in expectation (Zhang et al., 2019).

1/2 sum_i h_i (w_i - noise_i)^2,   h_i = 1 / i,   noise_i ~ N(0, i / 100),   i = 1 .. 100
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.parts.learned_schedules import describe, picture, space


@dataclass(frozen=True)
class NoisyQuadratic:
    r"""Expected loss of SGD on ``1/2 sum_i h_i (w_i - noise_i)^2``, exactly, by T + 1 copies of w.

    The steps are linear: copy 0 is the run without noise, copy k + 1 the answer to the noise of
    step k alone. Independent noises add in the mean of the square, so
    ``E 1/2 sum_i h_i w_i^2 = 1/2 sum over copies``, whatever the rates and the momentum. An example
    is the noise of one step, and an epoch of T examples gives each copy its noise once (the order
    does not matter): ``batch_size=1, sampling="epoch"``.
    """

    def __call__(self, copies: Array, hyper: PyTree, batch: Any) -> Array:
        """Batch: ``(h [n, d], noise [n, T + 1, d])``, zero but in one copy."""
        curvature, noise = batch
        return jnp.mean(jnp.sum(curvature[:, None] * (copies - noise) ** 2, (1, 2))) / 2


@dataclass(frozen=True)
class Expected:
    """``1/2 sum_i h_i E w_i^2``; batch: ``h [1, d]``."""

    def __call__(self, copies: Array, hyper: PyTree, batch: Any) -> Array:
        return jnp.sum(batch[0] * copies**2) / 2


def noisy_quadratic(hyper: PyTree, largest: float) -> Task:
    """Make curvatures 1 / i, noise of variance i / 100 in the gradient's zero, i = 1 .. 100."""
    steps, dtype = len(hyper["rate"]), jnp.result_type(float)
    i = jnp.arange(1, 101, dtype=dtype)
    noise = jnp.zeros((steps, steps + 1, 100), dtype)
    noise = noise.at[jnp.arange(steps), jnp.arange(steps) + 1].set(jnp.sqrt(i / 100))
    curvature = 1 / i
    problem = bl.Problem(NoisyQuadratic(), Expected(), space=space(hyper, largest))

    def measure(hyper: PyTree) -> Metrics:
        rates, momentum = np.asarray(hyper["rate"], float), float(hyper.get("momentum", 0.0))
        return {"expected_loss": expected_loss(rates, momentum)}

    return Task(
        name="schedule quadratic",
        problem=problem,
        data=bl.Data(
            inner=(jnp.broadcast_to(curvature, (steps, 100)), noise), outer=curvature[None]
        ),
        hyper=hyper,
        params=jnp.zeros((steps + 1, 100), dtype).at[0].set(1.0),
        metrics=lambda hyper, _: measure(hyper),
        baselines=lambda: baselines(steps),
        describe=describe,
        picture=partial(picture, greedy=greedy(steps)),
        notes={"steps": steps},
    )


def expected_loss(rates: np.ndarray, momentum: float = 0.0) -> float:
    """Return the expected loss of SGD on the noisy quadratic, by its second moments in float64.

    Without momentum ``A <- (1 - r h)^2 A + r^2 h^2 c``; with it the 2 x 2 moments of ``(w, v)``.
    """
    i = np.arange(1, 101, dtype=float)
    h, c = 1 / i, i / 100
    ww, wv, vv = np.ones(100), np.zeros(100), np.zeros(100)
    for rate in rates:
        # v <- m v + h (w - noise), then w <- w - rate v
        m = momentum
        vv, wv = (
            m**2 * vv + 2 * m * h * wv + h**2 * (ww + c),
            m * wv + h * ww,
        )
        ww, wv = ww - 2 * rate * wv + rate**2 * vv, wv - rate * vv
    return float(np.sum(h * ww) / 2)


def baselines(steps: int) -> dict[str, Metrics]:
    """Score the best constant, and the schedule that is best for the next step at every step."""
    constants = np.geomspace(0.1, 1.99, 100)
    best = min(expected_loss(np.full(steps, rate)) for rate in constants)
    cosine = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    peak = min(expected_loss(rate * cosine) for rate in constants)
    return {
        "best constant rate (of 100)": {"expected_loss": best},
        "best cosine (of 100 peaks)": {"expected_loss": peak},
        "greedy: each rate best for its own step": {"expected_loss": expected_loss(greedy(steps))},
    }


def greedy(steps: int) -> np.ndarray:
    """Return ``argmin_r`` of the next expected loss, ``sum h^2 A / sum h^3 (A + c)``, T times."""
    i = np.arange(1, 101, dtype=float)
    h, c = 1 / i, i / 100
    A, rates = np.ones(100), []
    for _ in range(steps):
        rate = np.sum(h**2 * A) / np.sum(h**3 * (A + c))
        A = (1 - rate * h) ** 2 * A + rate**2 * h**2 * c
        rates.append(rate)
    return np.array(rates)

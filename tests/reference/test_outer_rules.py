"""Auto, which needs no step size, on V3, V4, V8, V10 and V11: the bars of the reference answers."""

import jax
import numpy as np
import pytest

import bilevel as bl
from benchmarks.outer_cases import CASES, Case

pytestmark = pytest.mark.usefixtures("x64")


def auto(case: Case, calls: int) -> np.ndarray:
    result = bl.tune(
        case.problem, case.estimator, bl.outer.Auto(), case.hyper, case.params, case.data,
        steps=calls, key=jax.random.key(0),
    )  # fmt: skip
    assert not result.diverged
    return np.asarray(result.history["best"])


def test_v3_takes_at_most_15_evaluations() -> None:
    best = auto(CASES["V3"](), 15)
    assert 0.30656923 - 1e-7 < best[-1] <= 0.306575


def test_v10_takes_at_most_100_evaluations() -> None:
    assert 0.0135 < auto(CASES["V10"](), 100)[-1] <= 0.0140


# Evaluations: at most twice those of the best Adam, or the case's own number.
@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize(
    ("name", "calls", "bar", "start"),
    [("V4", 96, 0.2060, 0.5216425), ("V8", 400, 0.1965, 0.35212), ("V11", 14, 0.05, 1.3049)],
)
def test_the_bar_is_reached(name: str, calls: int, bar: float, start: float) -> None:
    best = auto(CASES[name](), calls)
    assert best[0] == pytest.approx(start, rel=1e-3)
    assert best[-1] <= bar

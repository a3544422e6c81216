"""What is shown and measured: time, progress, tables, the picture."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

import bilevel as bl
from experiments.runs import plots, progress, summary, trajectory, verify
from experiments.runs.timing import Stopwatch, covered
from tests.experiments import tiny
from tests.marks import quick_cases


def test_compiling_is_told_from_running() -> None:
    fresh = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x.T) + 1)
    x = jnp.ones((3, 2))
    watch = Stopwatch(running=100.0, compiling=50.0)
    with watch:
        fresh(x).block_until_ready()
    first = watch.compiling
    assert first > 50
    assert watch.running > 100
    with watch:
        fresh(x).block_until_ready()
    assert watch.compiling == first  # nothing was compiled


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 2), (5, 6)], 3), ([(0, 4), (1, 2)], 4), ([(1, 3), (0, 2)], 3)],
)
def test_nested_and_overlapping_spans_count_once(
    spans: list[tuple[float, float]], length: float
) -> None:
    assert covered(spans) == length


def lines(how: str, steps: int, stride: int, *, terminal: bool = False) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=terminal)
    with progress.Display(console, how, steps, 0) as display:
        for done in [1, *range(1 + stride, steps, stride), steps]:
            history = {"value": [0.0, 1.0 / done], "grad_norm": [0.0, 2.5]}
            display.update(done, history)
    return stream.getvalue().splitlines()


def test_plain_lines_are_few_and_hold_value_and_evidence() -> None:
    shown = lines("auto", 1000, 10)
    assert 10 <= len(shown) <= 12
    assert shown[0].startswith("step    1/1000  value 1  |hypergradient| 2.5")
    assert shown[-1].startswith("step 1000/1000  value 0.001")


def test_terminal_gets_a_live_bar_and_off_gets_nothing() -> None:
    assert any("━" in line and "20/20" in line for line in lines("auto", 20, 3, terminal=True))
    assert lines("plain", 20, 3, terminal=True)[0].startswith("step  1/20")
    assert lines("off", 20, 3) == []


def test_diverged_first_step_shows_nothing() -> None:
    stream = io.StringIO()
    with progress.Display(Console(file=stream), "plain", 5, 0) as display:
        display.update(0, {"value": []})
    assert stream.getvalue() == ""


RESULT = {
    "task": "t",
    "test_metrics": {"mse": 2.0, "r2": 0.1},
    "value_start": 1.0,
    "value": 0.5,
    "baselines": {"worse [cv]": {"mse": 3.0, "r2": 0.0}, "better": {"mse": 1.0, "r2": None}},
    "steps": 7,
    "evidence": {"inner_residual": 0.01},
    "hyper_summary": {"penalty": 3.0},
    "checks": [{"step": 0, "grad_error": 0.02, "cosine": 0.999, "grad_norm": 1.0}],
    "counts": {"gradients": 12345, "hvps": 0},
    "seconds": 1.0,
    "compile_seconds": 2.0,
    "status": "completed",
    "message": None,
    "notes": {},
}


def test_table_is_in_order_of_the_first_metric() -> None:
    stream = io.StringIO()
    summary.show(Console(file=stream, width=100), RESULT, [Path("a/curves.png")])
    text = stream.getvalue()
    places = [text.index(name) for name in ("better", "bilevel, this run", "worse [cv]")]
    assert places == sorted(places)
    for shown in ("relative error 0.02", "gradients 12,345", "a/curves.png", "1 -> 0.5"):
        assert shown in text
    assert "hvps" not in text


def test_reason_of_a_divergence_is_the_last_word() -> None:
    stream = io.StringIO()
    diverged = RESULT | {"status": "diverged", "message": "why [it] did", "value": None}
    summary.show(Console(file=stream, width=100), diverged, [])
    assert stream.getvalue().rstrip().endswith("diverged: why [it] did")


NOTHING = bl.Estimate(0.0, None, bl.Evidence())  # pyright: ignore[reportArgumentType]


@quick_cases(1, "size", [1, 5, 40, 100])
def test_picture_of_any_number_of_hyperparameters(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(size)
    hyper = jnp.asarray(rng.normal(size=size))
    rows = np.stack([trajectory.Trajectory()(hyper + t, None, NOTHING)["hyper"] for t in range(4)])
    history = {"value": np.ones(4), "grad_norm": np.zeros(4), "inner_residual": np.ones(4)}
    plots.curves(tmp_path / "c.png", history | {"hyper": rows}, trajectory.names(hyper), "title")
    picture = imread(tmp_path / "c.png")
    assert picture.shape[:2] == (840, 1200)
    assert picture[..., :3].std() > 0.05  # there is something on it


def test_trajectory_names_every_entry_or_gives_quantiles() -> None:
    few = {"a": jnp.arange(2.0), "b": jnp.array(3.0)}
    record = trajectory.Trajectory()
    assert trajectory.names(few) == ["['a'][0]", "['a'][1]", "['b']"]
    assert trajectory.names(few, ["x", "y", "z"]) == ["x", "y", "z"]
    assert trajectory.names(few, ["too", "few"])[0] == "['a'][0]"
    assert record(few, None, NOTHING)["hyper"].tolist() == [0, 1, 3]
    many = jnp.arange(101.0)
    assert trajectory.names(many) == list(trajectory.QUANTILES)
    assert record(many, None, NOTHING)["hyper"].tolist() == [0, 25, 50, 75, 100]
    known = bl.Evidence(standard_error={"a": jnp.array([3.0]), "b": jnp.array(4.0)})
    assert record(few, None, bl.Estimate(jnp.array(0.0), few, known))["standard_error"] == 5
    assert record == trajectory.Trajectory()  # so that a second run compiles nothing


def test_distance_from_the_closed_form() -> None:
    task = tiny.tiny()
    assert task.exact is not None
    value, grad = task.exact(task.hyper)
    turned = np.array([grad[1], -grad[0], 0.0])
    estimate = bl.Estimate(jnp.float32(value * 1.5), jnp.asarray(grad + turned), bl.Evidence())

    class Result:
        state = type("State", (), {"step": jnp.array(4), "hyper": task.hyper})

    Result.estimate = estimate
    (check,) = verify.against_exact(task, Result)
    length = np.hypot(grad[0], grad[1])
    assert check["step"] == 3
    assert check["value_error"] == pytest.approx(0.5, rel=1e-5)
    assert check["grad_error"] == pytest.approx(length / np.linalg.norm(grad), rel=1e-5)
    angle = np.arctan2(length, np.linalg.norm(grad))
    assert check["cosine"] == pytest.approx(np.cos(angle), rel=1e-5)


def test_a_trial_taken_back_is_no_nan() -> None:
    """An outer rule may try a point where the inner solver diverges, and return from it."""
    history = {"value": np.array([0.5, 0.25, np.nan]), "grad_norm": np.array([1.0, 0.1, np.nan])}
    text = progress.numbers(history)
    assert "nan" not in text
    assert text.endswith("taken back, a smaller step is tried, best value 0.25")

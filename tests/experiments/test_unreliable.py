"""A run whose last hypergradient is known to be wrong: its status, its end, and what others do."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.tuning.evidence import absolute_error
from experiments import report
from experiments.reports import table
from experiments.runs import plots, results, summary
from experiments.sweeps.ending import percent
from tasks.networks.cleaning import cleaning_network
from tasks.networks.mixture import mixture
from tests.experiments.conftest import Command
from tests.experiments.test_sweep import result, verdicts

WRONG = ["solver=gradient_descent", "solver.step_size=0.02", "estimator.steps=3"]
WRONG_QUICK = ["task=tiny", "plot=false", "compile_cache=null", "steps=3", "every=2", *WRONG]


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_status_4_with_number_cause_and_cure(command: Command, tmp_path: Path) -> None:
    """Three small steps: neither the iterates nor their derivative have gone anywhere."""
    folder = tmp_path / "a"
    outcome = command(f"hydra.run.dir={folder}", quick=WRONG_QUICK)
    assert outcome.status == 4
    made = result_in(folder)
    assert made["status"] == "unreliable"
    assert made["relative_error"] > 0.5
    assert made["checks"][-1]["grad_error"] > 0.5  # and it is
    assert made["unknown"] == ["noise of the inner solver"]
    assert made["evidence"].keys() >= {"derivative_residual", "residual_error"}
    for words in ("known to be wrong by about", "has not converged", "Take more inner steps"):
        assert words in made["message"]
        assert words in outcome.out
    assert f"known error     {percent(made['relative_error'])}" in outcome.out

    again = command(f"resume={folder}", quick=[])
    assert again.status == 4
    assert "finished already, unreliable: This hypergradient" in again.out
    further = command(f"resume={folder}", "steps=5", quick=[])
    assert further.status == 4
    assert result_in(folder)["steps"] == 5
    forgiven = command(f"resume={folder}", "max_error=null", quick=[])
    assert forgiven.status == 0
    assert (result_in(folder)["status"], result_in(folder)["steps"]) == ("completed", 5)


def test_no_evidence_no_verdict(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    line = [f"hydra.run.dir={folder}", "evidence=off"]
    assert command(*line, quick=WRONG_QUICK).status == 0
    assert result_in(folder)["evidence"].keys() == {"inner_residual", "derivative_residual"}
    outcome = command("evidence=some", "max_error=-1.0", quick=WRONG_QUICK)
    assert outcome.status == 1
    assert "evidence: expected one of auto, full, off, got 'some'" in outcome.err
    assert "max_error: expected a number above 0, or null for any, got -1.0" in outcome.err


@pytest.mark.parametrize(
    "many", [["-m", "solver.step_size=0.01,0.8"], ["+vmap.solver.step_size=[0.01,0.8]"]]
)
def test_many_runs_count_and_name_the_bad_ones(
    command: Command, tmp_path: Path, many: list[str]
) -> None:
    folder, flags = tmp_path / "many", [part for part in many if part == "-m"]
    place = "hydra.sweep.dir" if flags else "hydra.run.dir"
    quick = [q for q in WRONG_QUICK if "step_size" not in q]
    quick = [q.replace("estimator.steps=3", "estimator.steps=10") for q in quick]
    outcome = command(*many, f"{place}={folder}", quick=quick)
    assert outcome.status == 4
    assert "1 of 2 runs is unreliable" in outcome.out
    assert "solver.step_size=0.01: " in outcome.out or "solver.step_size-0.01" in outcome.out
    found = [result_in(path.parent) for path in sorted(folder.rglob("result.json"))]
    statuses = {made["settings"]["solver"]["step_size"]: made["status"] for made in found}
    assert statuses == {0.01: "unreliable", 0.8: "completed"}
    rows = table.rows(report.read(folder))
    named = {row.label: table.verdict(row, rows[0]) for row in rows}
    assert [verdict for label, verdict in named.items() if "0.01" in label] == ["1 unreliable"]
    assert named.pop(rows[0].label) == "best"


def test_a_descent_that_has_come_down_to_its_error_is_reliable() -> None:
    """Where the outer loss is flat, an error of 1 % of the first hypergradient is all there is."""
    settings = {"max_error": 0.5, "evidence": "auto"}

    def judged(size: float, error: float, rows: list[tuple[float, float]]) -> str | None:
        evidence = bl.Evidence(standard_error=jnp.array(error))
        estimate = bl.Estimate(jnp.array(0.0), jnp.array(size), evidence)
        known, sizes = np.array([*rows, (error / size, size)]).T
        history = {"relative_error": known, "grad_norm": sizes}
        return results.bad_evidence(estimate, history, settings)

    assert judged(0.01, 0.01, [(0.01, 1.0)]) is None
    assert judged(0.01, 0.01, [(math.inf, math.nan), (0.01, 1.0)]) is None  # a step taken back
    # Of the length .01, .008 is the gradient and .006 noise: 3, 4, 5.
    assert "known to be wrong by about 75 %" in str(judged(0.01, 0.006, [(0.9, 1.0)]))
    assert judged(1.0, 1.0, [(0.01, 1.0)]) is not None
    assert judged(1.0, 0.4, []) is None


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"bias": 3.0, "standard_error": 4.0}, 5.0),
        ({"residual_error": 0.75}, 10 * 0.6),  # 3, 4, 5
        ({"bias": 2.0, "residual_error": 0.75, "standard_error": 3.0}, 7.0),  # 2, 3, 6, 7
        ({"residual_error": math.inf}, 10.0),
        ({"linear_residual": 0.75}, 10 * 0.6),
        ({"inner_residual": 0.75}, math.nan),  # which says nothing of a derivative
    ],
)
def test_absolute_error(evidence: dict[str, float], expected: float) -> None:
    made = bl.Evidence(**{name: jnp.asarray(x) for name, x in evidence.items()})
    estimate = bl.Estimate(jnp.array(0.0), jnp.array(10.0), made)
    assert absolute_error(estimate) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_unreliable_rows_are_marked_counted_and_never_best() -> None:
    made = [result("a", seed, 1.0, "unreliable") for seed in range(2)]
    made += [result("b", 0, 3.0), result("b", 1, 3.5)]
    made += [result("c", 0, 2.0), result("c", 1, 2.0, "unreliable")]
    assert verdicts(made) == {"b": "best", "c": "1 unreliable", "a": "2 unreliable"}
    lines = table.make_table(table.rows(made)).set_index("run")
    assert list(lines["completed"]) == [2, 0, 1]
    assert list(lines["of"]) == [2, 2, 2]
    assert lines.loc["a", "mean"] == 1.0  # the number stands beside the mark

    alone = table.rows(made[:2])
    assert table.winners(alone) == {}
    assert verdicts(made[:2]) == {"-": "2 unreliable"}
    lost = [*made[:2], result("b", 0, 3.0), result("b", 1, 9.0, "failed")]
    assert verdicts(lost) == {"b": "best, 1 failed", "a": "2 unreliable"}


def test_page_marks_them_and_names_no_winner(tmp_path: Path) -> None:
    from experiments.reports.page import make_page

    found = table.rows([result("a", 0, 1.0, "unreliable") | {"message": "wrong by 90 %"}])
    page = make_page("title", table.make_table(found), found)
    assert "Best for" not in page
    assert 'class="unreliable"' in page
    assert "wrong by 90 %" in page
    assert "Not completed, or unreliable" in page


def test_curves_show_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot

    def recorded(axes: Axes, *args: Any, **kwargs: Any) -> Any:
        drawn.append(kwargs.get("label"))
        return plot(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", recorded)
    history = {"value": np.ones(4), "grad_norm": np.ones(4), "hyper": np.ones((4, 1))}
    history |= {"relative_error": np.array([0.1, 0.2, np.inf, 0.4])}
    plots.curves(tmp_path / "c.png", history, ["x"], "title")
    assert "relative error" in drawn


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.1234, "12 %"), (0.004567, "0.46 %"), (4.4712, "447 %"), (math.inf, "worthless")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    "message", [None, "converged after 9 outer steps.", "converged. It is wrong."]
)
def test_what_is_wrong_is_said_once(message: str | None) -> None:
    facts = {"stopped": True, "value": 1.0, "test_metrics": {}, "hyper_summary": {}}
    status, said = results.status(facts, message, "It is wrong.")
    assert status == "unreliable"
    assert said is not None
    assert said.count("It is wrong.") == 1
    assert said.startswith("converged") is (message is not None)


def test_no_error_is_printed_against_a_minimiser_that_a_task_does_not_have() -> None:
    asked = {"rows": 20, "length": 6, "validation": 10, "test": 10, "width": 4}
    trained = mixture(bl.Reverse(bl.SGD(0.5, batch_size=4), 2), **asked)
    cleaned = cleaning_network(train=150, validation=20, test=30, channels=(3,))
    made = {"relative_error": 0.71, "unknown": ["noise of the inner solver"]}
    assert summary.known_error(made).startswith("71 %; not measured: noise")
    for task in (trained, cleaned):
        assert summary.known_error(made | {"notes": dict(task.notes)}) == ""

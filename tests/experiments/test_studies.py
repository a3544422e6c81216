"""Tiny runs of the studies against outside numbers; files and exit status of the command."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.studies import base
from experiments.studies.theory import escape, modified_equation, noise_floor, sgd_derivatives
from experiments.studies.theory.quadratic_errors import CONVEX, MODELS, make_setting, measure_errors
from experiments.studies.theory.sgd_figure import smooth_runs, theorem_rates
from experiments.studies.theory.sgd_regimes import (
    compute_curves,
    fit_slope,
    make_regimes,
    predict_limits,
)
from experiments.studies.theory.sgd_runs import compare_means

pytestmark = pytest.mark.usefixtures("x64")


def failed(result):
    return [str(check) for check in result.checks if not check.passed]


@pytest.mark.extended
def test_decreasing_step_falls_like_one_over_k():
    """Slope -1.00 +- 0.01 from the exact recursion, the closed form's constant, the bound."""
    regime = make_regimes(50, 5, 30_000, seed=0)[1]
    exact = compute_curves(regime)
    kappa = 1 / np.linalg.eigvalsh(regime.A.T @ regime.A / 50)[0]
    slopes = [fit_slope(curve, 8 * kappa**2) for curve in exact.exact]
    assert slopes == pytest.approx([-1, -1], abs=0.01)
    assert (exact.exact <= exact.bound * (1 + 1e-9)).all()
    for row in predict_limits(regime, exact.exact):
        assert row["exact recursion"] == pytest.approx(row["closed form"], rel=0.01)


def test_rare_runs_are_called_unreliable():
    """One run in a thousand carries the mean: no z score; a chi-squared sample: one."""
    rng = np.random.default_rng(0)
    rare = np.where(np.arange(1000) == 3, 1e6, 1.0)
    samples = np.stack([rare, rng.standard_normal(1000) ** 2, np.full(1000, 1e-30)], 1)
    assert list(compare_means(samples, np.array([1e3, 1.0, 1e-30])).reliable) == [
        False,
        True,
        False,
    ]


@pytest.mark.slow
def test_derivatives_of_sgd():
    """Ridge and all regimes: the largest of some hundred correlated |z| within chance's 99.9 %."""
    sizes = sgd_derivatives.Sizes(
        exact_steps=30_000,
        steps=1000,
        runs=100,
        seeds=1,
        ridge_runs=100,
        rare_runs=200,
        chunks=1,
    )
    result = sgd_derivatives.run(sizes, 0, base.quiet)
    assert failed(result) == []
    for row in result.tables["ridge against reference moments"]:
        assert row["exact recursion"] == pytest.approx(row["reference"], rel=1e-6)
    for row in result.tables["rare runs"]:
        assert row["median / exact"] < 1


@pytest.mark.extended
def test_noise_floor():
    """SciPy's discrete Lyapunov solution to 1e-10, and simulated chains up to 0.99 of the limit."""
    sizes = noise_floor.Sizes(60, 150, 200, adam_chains=30, adam_burn=1500)
    result = noise_floor.run(sizes, 0, base.quiet)
    assert failed(result) == []
    newton = {
        row["setting"]: row for row in result.tables["heavy ball"] if row["method"] == "Newton"
    }
    for fraction, row in newton.items():  # continuous time misses the factor 2 / (2 - step size)
        assert row["continuous time"] / row["floor"] == pytest.approx(1 - fraction, rel=1e-6)


@pytest.mark.extended
def test_modified_equations_on_quadratics():
    """The reference table of four models; where it depends on the noise, its size."""
    rows, checks = modified_equation.check_quadratics(0, base.quiet)
    assert [str(check) for check in checks if not check.passed] == []
    assert len(rows) == 20


@pytest.mark.slow
def test_modified_equations():
    """That table, weak orders 1 and 2, and the limits of existence."""
    sizes = modified_equation.Sizes((100, 200, 400), (16, 32, 64))
    assert failed(modified_equation.run(sizes, 0, base.quiet)) == []


def test_errors_on_quadratics_are_those_of_a_plain_loop():
    """SME-1 on the convex quadratic: the mean of SGD by a loop, that of the model by expm."""
    K, _, start = make_setting(CONVEX, seed=1)
    found = measure_errors(MODELS[0], CONVEX, 0.5, [7], seed=1)[0, 0]
    h, U = np.linalg.eigh(K)
    first = U.T @ np.asarray(start.mean)
    sgd, model = (1 - 0.5 * h) ** 7 * first, np.exp(-0.5 * 7 * h) * first
    assert found == pytest.approx(np.linalg.norm(sgd - model) / np.linalg.norm(sgd), rel=1e-12)


@pytest.mark.slow  # tests/noise/test_escape.py has the same exits one by one
def test_escape():
    """Reference exponents and exit times; HA-SME always leaves first."""
    result = escape.run(escape.Sizes((10.0, 12.0), (2.5, 3.5), (100.0,)), 0, base.quiet)
    assert failed(result) == []
    rows = {row["eta g"]: row for row in result.tables["saddle"]}
    assert round(rows[0.5]["steps"], 1) == 13.7
    assert round(rows[0.5]["SME-1"], 1) == 10.5


def small(value):
    def run(sizes, seed, track):
        assert jax.config.read("jax_enable_x64")
        figure, axes = base.figure(1, 1, 3, 2)
        axes[0, 0].plot([1, 2], [seed, sizes])
        rows = [{"n": n, "root": n**0.5} for n in track(range(sizes), "roots")]
        return base.Result(
            "T", figure, {"some roots": rows}, ["Found."], [base.below("v", value, 1)]
        )

    return run


@pytest.mark.parametrize(("value", "status"), [(0.5, 0), (1.5, 1), (np.nan, 1)])
def test_command_writes_everything_and_says_what_failed(value, status, tmp_path, capsys):
    arguments = ["--quick", "--seed", "7", "--out", str(tmp_path / "new"), "--no-progress"]
    assert base.command("tiny", "About.", small(value), 5, 3, arguments) == status
    said = capsys.readouterr().out
    assert ("FAILED: v is" in said) == bool(status)
    written = json.loads((tmp_path / "new" / "tiny.json").read_text())
    assert (written["passed"], written["quick"], written["seed"]) == (not status, True, 7)
    with (tmp_path / "new" / "tiny-some-roots.csv").open() as file:
        assert list(csv.reader(file))[1:] == [["0", "0.0"], ["1", "1.0"], ["2", str(2**0.5)]]
    assert "| 2 | 1.414 |" in (tmp_path / "new" / "tiny.md").read_text()
    assert imread(tmp_path / "new" / "tiny.png").ndim == 3
    assert len(list((tmp_path / "new").iterdir())) == 4  # no temporary files


def test_a_switch_of_a_study_sets_a_size(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Switched:
        count: int = 3
        log_k: bool = False

    def run(sizes, seed, track):
        return small(0.5)(sizes.count + 10 * sizes.log_k, seed, track)

    for given, count in ((["--log-k"], 13), ([], 3)):
        arguments = ["--out", str(tmp_path), "--no-progress", *given]
        options = {"log_k": "What it does."}
        base.command("tiny", "About.", run, Switched(), Switched(), arguments, options)
        written = json.loads((tmp_path / "tiny.json").read_text())
        assert len(written["tables"]["some roots"]) == count
        assert written["sizes"]["log_k"] == bool(given)


def test_smoothed_runs_are_geometric_means():
    runs = np.array([[1.0, 100.0, 10_000.0, 100.0]])
    np.testing.assert_allclose(smooth_runs(runs, 3), [[100.0, 10 ** (8 / 3)]])
    np.testing.assert_allclose(smooth_runs(runs, 9), [[100.0]])  # no longer than there are records


def test_rates_of_the_theorem():
    """``1/k`` and ``log(k)^2 / k`` with ``k + 8 kappa^2`` for k, and the geometric one."""
    _, decreasing, double, _ = make_regimes(20, 3, 5, seed=0)
    mu = np.linalg.eigvalsh(decreasing.A.T @ decreasing.A / 20)[0]
    t = np.arange(1, 6) + 8 / mu**2
    rates = theorem_rates(decreasing, 5)
    np.testing.assert_allclose(rates["1/k"], 1 / t)
    np.testing.assert_allclose(rates["log(k)^2 / k"], np.log(t) ** 2 / t)
    (geometric,) = theorem_rates(double, 5).values()
    np.testing.assert_allclose(geometric, np.cumprod(np.full(5, 1 - mu**2 / 4)))


def test_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        base.command("tiny", "About.", small(0), 5, 3, ["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "python -m experiments.studies.tiny" in said
    assert "About." in said
    assert "tens of seconds" in said

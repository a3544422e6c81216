r"""The hinge on three data sets, two of them real: is subgradient SGD's derivative wrong there?

A linear support vector machine without intercept, ``mean max(0, 1 - y x.w) + lam |w|^2 / 2``, on
synthetic rows, breast cancer and digits. Expected of ``dw / dlog lam``, exact: ``-P w*``, P the
projection off the examples on the margin; of subgradient SGD with small steps: ``-w*``
(`nonsmooth.py`). And is there a width of the smoothed hinge that serves all of them? About 20 s
with --quick, else 1 minute.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import bilevel as bl
from experiments.studies.base import Check, Result, Track, caption, command, figure, quiet
from experiments.studies.open_questions import measure, problems
from experiments.studies.open_questions.data_sets import CLASSES, load_classes
from experiments.studies.open_questions.kinks import (
    BATCH,
    HINGE,
    SMOOTHED,
    WHOLE,
    Case,
    ProximalSGD,
    solve_hinge,
)


@dataclass(frozen=True)
class Sizes:
    """Step sizes over 1 / L, penalties, widths of the smoothing, runs per point, data sets."""

    steps: tuple[float, ...] = (0.8, 0.2, 0.05)
    penalties: tuple[float, ...] = (0.3, 0.1, 0.05)
    widths: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    runs: int = 200
    data_sets: tuple[str, ...] = CLASSES


FULL = Sizes()
QUICK = Sizes(steps=(0.2,), widths=(1.0, 0.1), runs=50)

TIMES = 6.0  # a run lasts 2 * TIMES / (step x curvature) steps, the second half averaged


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """Biases of subgradient SGD and of the smoothing, on all data sets at all penalties."""
    wrong, smooth = [], []
    jobs = [(name, lam) for name in sizes.data_sets for lam in sizes.penalties]
    for name, lam in track(jobs, "data sets"):
        case = make_hinge_case(*load_classes(name, seed), lam)
        about = {"data": name, "penalty": lam, "on the margin": case[1].active}
        for times in sizes.steps:
            row = judge_steps(case, "subgradient", times, sizes.runs, seed)
            wrong.append({**about, **row})
        smooth += [{**about, "width": w, "exact bias": smooth_bias(case, w)} for w in sizes.widths]
    findings, checks = _conclude(wrong, smooth, sizes)
    tables = {"bias": wrong, "smoothed hinge": smooth}
    return Result("The hinge on three data sets", _draw(wrong, smooth), tables, findings, checks)


def make_hinge_case(X: np.ndarray, y: np.ndarray, lam: float) -> Case:
    """Return the hinge on a table at a penalty: the first half trains, the second validates.

    Raises
    ------
    ValueError : examples on the margin determine all params, and the exact hypergradient is 0.
    """
    n = len(y) // 2
    data = bl.Data(inner=(X[:n], y[:n]), outer=(X[n:], y[n:]))
    hyper, params, largest = np.log([lam]), np.zeros(X.shape[1]), float((X**2).sum(1).max())
    exact = solve_hinge(data.inner, data.outer, hyper[0])
    if exact.active >= X.shape[1]:
        raise ValueError(
            f"make_hinge_case: {exact.active} examples on the margin determine all "
            f"{X.shape[1]} params, so that the hypergradient is 0 and no error is relative to it. "
            f"Take a penalty above {lam:g}."
        )
    return (
        problems.Setting("hinge", HINGE, hyper, params, data, exact.grad, lam, largest),
        exact,
        lam,
    )


def sample_averages(case: Case, way: str, times: float, runs: int, seed: int) -> np.ndarray:
    """Return hypergradients ``[runs, p]`` from tail averages of SGD that has forgotten its start.

    ``way``: ``proximal``; ``subgradient``, on the whole loss; ``smooth``, on that of the case.
    """
    at, _, mu = case
    step = times / at.largest
    steps = int(TIMES / (step * mu))
    solver: Any = ProximalSGD(step) if way == "proximal" else bl.SGD(step, batch_size=BATCH)
    if way == "subgradient":
        at = replace(at, problem=WHOLE.get(at.name, at.problem))
    forward = bl.Forward(solver, 2 * steps, average=steps)
    return measure.sample(at, forward, runs, seed + 1).grads


def judge_steps(case: Case, way: str, times: float, runs: int, seed: int) -> dict[str, Any]:
    """Bias along log lam1 (log lam for the hinge), with what theory says of subgradient SGD."""
    exact = case[1]
    grads = sample_averages(case, way, times, runs, seed)
    got = measure.assess(grads[:, :1], exact.grad[:1])
    return {
        "problem": case[0].name,
        "estimator": f"{way} SGD",
        "step x L": times,
        "bias": float(got.bias[0]),
        "s.e.": float(got.bias_error[0]),
        "bias / s.e.": got.resolved,
        "limit of subgradient SGD": float((exact.missed - exact.grad)[0] / abs(exact.grad[0])),
    }


def smooth_bias(case: Case, width: float) -> float:
    """Return how far the exact hypergradient of the smoothed hinge is off, relative."""
    at, exact, _ = case
    both = np.array([at.hyper[0], width])
    _, grad = bl.testing.dense_hypergradient(SMOOTHED, both, at.params, at.data)
    return float((grad[0] - exact.grad[0]) / abs(exact.grad[0]))


def follow_smoothed(case: Case, width: float, runs: int, seed: int) -> dict[str, Any]:
    """Return the bias of SGD on the smoothed hinge, beside that of its exact solution."""
    at, exact, lam = case
    top = at.largest / (4 * width) + lam
    both = np.array([at.hyper[0], width])
    curved = replace(at, name="smoothed", problem=SMOOTHED, hyper=both, largest=top)
    grads = sample_averages((curved, exact, lam), "smooth", 0.5, runs, seed)
    got = measure.assess(grads[:, :1], exact.grad)
    return {
        "width": width,
        "exact bias": smooth_bias(case, width),
        "bias of SGD": float(got.bias[0]),
        "s.e.": float(got.bias_error[0]),
        "steps of SGD": 2 * int(TIMES / (0.5 / top * lam)),
    }


def _conclude(wrong: Any, smooth: Any, sizes: Sizes) -> tuple[list[str], list[Check]]:
    finest, limit = min(sizes.steps), "limit of subgradient SGD"
    last = [r for r in wrong if r["step x L"] == finest]
    findings = [
        f"{r['data']}, penalty {r['penalty']:g}, {r['on the margin']} examples on the margin: "
        f"subgradient SGD is off by {measure.show(r['bias'], r['s.e.'])} of the hypergradient at "
        f"step {finest:g}/L; the limit of small steps is {r[limit]:.3g}."
        for r in last
    ]
    checks = []
    for row in [r for r in last if r["on the margin"]]:
        name = f"{row['data']}, penalty {row['penalty']:g}"
        resolved = row["bias / s.e."]
        what = f"{name}: bias of subgradient SGD, in s.e."
        checks.append(Check(what, resolved, "more than 4", resolved > 4))
        ratio, allowed = row["bias"] / row[limit], 0.3 + 4 * row["s.e."] / abs(row[limit])
        what = f"{name}: bias over its limit of small steps"
        checks.append(Check(what, ratio, "1 within 0.3 and 4 s.e.", abs(ratio - 1) < allowed))
    wrong_at = [r for r in smooth if r["on the margin"] and r["width"] == min(sizes.widths)]
    best = {}
    for name, lam in dict.fromkeys((r["data"], r["penalty"]) for r in smooth):
        rows = [r for r in smooth if (r["data"], r["penalty"]) == (name, lam)]
        best[name, lam] = min(rows, key=lambda r: abs(r["exact bias"]))
    findings.append(
        f"At width {min(sizes.widths):g} the smoothed hinge leaves "
        + ", ".join(f"{r['exact bias']:.2g}" for r in wrong_at)
        + " where examples are on the margin. The widths with the least exact bias: "
        + ", ".join(f"{r['width']:g} ({r['exact bias']:.2g})" for r in best.values())
        + "."
    )
    return findings, checks


def _draw(wrong: Any, smooth: Any) -> Any:
    made, axes = figure(1, 2, 11, 4.4)
    left, right = axes[0]
    limit, styles = "limit of subgradient SGD", ("-", "--", ":")
    for j, name in enumerate(dict.fromkeys(r["data"] for r in wrong)):
        rows = [r for r in wrong if r["data"] == name]
        measure.plot(left, j, rows, limit, "bias", "s.e.", 4, ls="", label=name)
        lams = dict.fromkeys(r["penalty"] for r in smooth)
        for lam, style in zip(lams, styles, strict=False):
            rows = [r for r in smooth if (r["data"], r["penalty"]) == (name, lam)]
            measure.plot(
                right, j, rows, "width", "exact bias", ls=style, label=f"{name}, penalty {lam:g}"
            )
    ends = [f(r[k] for r in wrong for k in ("bias", limit)) for f in (min, max)]
    left.plot(ends, ends, color="0.3", label="equal")
    left.set(title="subgradient SGD", xlabel="limit of small steps", ylabel="measured bias")
    left.set(xscale="symlog", yscale="symlog")
    right.axhline(0, color="0.3", linewidth=1)
    right.set(xscale="log", yscale="symlog", title="smoothed hinge, exact solution")
    right.set(xlabel="width of the smoothing", ylabel="bias")
    left.legend(fontsize=8)
    made.legend(*right.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    caption(made, "Relative to the hypergradient along log lam; bars: 4 s.e.")
    return made


if __name__ == "__main__":
    sys.exit(command("seed_hinges", __doc__, run, FULL, QUICK))

r"""Nonsmooth inner problems: lasso, elastic net, hinge.

Whose derivative is it? Autodiff of a step is the derivative of its smooth pieces. A proximal step
is continuous across its kinks, so nothing is lost. A subgradient step jumps there; the jump, in
effect a curvature concentrated on the kink, is missed at any step size. In the limit of small steps

    lasso, subgradient SGD:  D -> -(H + lam2)^-1 lam1 s,   s the subgradient at w*, all coordinates
    exact:                   D  = -(H_SS + lam2)^-1 lam1 s_S on the support S, 0 elsewhere
    hinge, subgradient SGD:  D -> -w*       exact: -P w*, P the projection off the examples on the
                                            margin, whose constraints y x.w = 1 the kink enforces

for d / d log lam. So subgradient SGD has an O(1) bias that no averaging removes; proximal SGD has
the O(step) one that smooth problems have; proximal SVRG and SAGA, which find the support, have
none. A hinge has no cheap proximal map over examples: it is smoothed here, width delta.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

import bilevel as bl
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet
from experiments.studies.open_questions import measure, problems
from experiments.studies.open_questions.hinges import (
    follow_smoothed,
    judge_steps,
    make_hinge_case,
)
from experiments.studies.open_questions.kinks import PROXIMAL, Case, make_sparse_case


@dataclass(frozen=True)
class Sizes:
    """Step sizes over 1 / L, runs per point, passes of the solvers without noise floor, widths."""

    steps: tuple[float, ...] = (0.8, 0.2, 0.05)
    runs: int = 200
    passes: tuple[int, ...] = (20, 60, 180)
    widths: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)


FULL = Sizes()
QUICK = Sizes(steps=(0.8, 0.2), runs=100, passes=(20, 80), widths=(1.0, 0.1))


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """Bias against the step, error against passes, and the hinge against its smoothing."""
    sparse = {name: make_sparse_case(name, seed) for name in PROXIMAL}
    ways = ("subgradient", "proximal")
    jobs = [(name, way, s) for name in sparse for way in ways for s in sizes.steps]
    biases = [
        judge_steps(sparse[name], way, s, sizes.runs, seed)
        for name, way, s in track(jobs, "bias against the step")
    ]
    jobs = [(name, passes) for name in ("SAGA", "SVRG", "gradient") for passes in sizes.passes]
    tends = [
        _follow_proximal(sparse["lasso"], name, passes, seed)
        for name, passes in track(jobs, "proximal solvers")
    ]
    hinge, smooth = _compare_hinges(sizes, seed, track)
    findings, checks = _conclude(biases, tends, hinge, smooth, sparse, sizes)
    tables = {"bias": biases + hinge, "no floor": tends, "smoothed hinge": smooth}
    drawn = _draw(biases, tends, hinge, smooth, sparse, sizes)
    return Result("Nonsmooth inner problems", drawn, tables, findings, checks)


def _follow_proximal(case: Case, name: str, passes: int, seed: int) -> dict[str, Any]:
    """The error of a proximal solver that has no noise at the solution."""
    at, _, _ = case
    n, step = at.examples, 1 / (3 * at.largest)
    solver: Any = bl.SAGA(step) if name == "SAGA" else bl.SVRG(step)
    if name == "gradient":
        solver = bl.ProximalGradient(1 / np.linalg.eigvalsh(_make_gram(at))[-1])
    steps = max(int(passes * n / (2 * measure.count_examples_per_step(solver, n))), 1)
    got = measure.sample(at, bl.Forward(solver, steps), 1 if name == "gradient" else 8, seed + 2)
    errors = np.linalg.norm(got.grads - at.exact, axis=1) / np.linalg.norm(at.exact)
    return {
        "solver": f"proximal {name}",
        "passes": round(got.cost / n, 1),
        "median relative error": float(np.median(errors)),
        "worst": float(errors.max()),
    }


def _make_gram(at: problems.Setting) -> np.ndarray:
    X = at.data.inner[0]
    return X.T @ X / len(X)


def _compare_hinges(sizes: Sizes, seed: int, track: Track) -> tuple[Any, Any]:
    """Subgradient SGD on the hinge; SGD and the exact solution for its smoothed forms."""
    X, w, rng = problems.make_design(seed, 160, 8, spread=0.1)
    y = np.sign(X @ w + 0.5 * rng.standard_normal(160))
    case = make_hinge_case(X, y, 0.03)
    wrong = [
        judge_steps(case, "subgradient", times, sizes.runs, seed)
        for times in track(sizes.steps, "hinge")
    ]
    smooth = [
        follow_smoothed(case, width, sizes.runs, seed)
        for width in track(sizes.widths, "smoothed hinge")
    ]
    return wrong, smooth


def _conclude(biases: Any, tends: Any, hinge: Any, smooth: Any, sparse: Any, sizes: Sizes) -> Any:
    finest, coarsest = min(sizes.steps), max(sizes.steps)

    def at(problem: str, estimator: str, step: float) -> dict[str, Any]:
        rows = [*biases, *hinge]
        key = (problem, estimator, step)
        return next(r for r in rows if (r["problem"], r["estimator"], r["step x L"]) == key)

    findings, checks = [], []
    for name in (*sparse, "hinge"):
        wrong = at(name, "subgradient SGD", finest)
        findings.append(
            f"{name.capitalize()}: the derivative of subgradient SGD is off by "
            f"{measure.show(wrong['bias'], wrong['s.e.'])} of the hypergradient at step "
            f"{finest:g}/L ({wrong['bias / s.e.']:.0f} s.e.); the limit of small steps is "
            f"{wrong['limit of subgradient SGD']:.3g}: it does not go away."
        )
        resolved = wrong["bias / s.e."]
        what = f"{name}: bias of subgradient SGD, in s.e."
        checks.append(Check(what, resolved, "more than 4", resolved > 4))
    for name in sparse:
        small, large = (at(name, "proximal SGD", s) for s in (finest, coarsest))
        wrong = at(name, "subgradient SGD", finest)
        findings.append(
            f"{name.capitalize()}: the derivative of proximal SGD is off by "
            f"{measure.show(small['bias'], small['s.e.'])} at step {finest:g}/L and by "
            f"{measure.show(large['bias'], large['s.e.'])} at {coarsest:g}/L."
        )
        share = abs(small["bias"]) + 4 * small["s.e."]
        what = f"{name}: |bias| of proximal SGD + 4 s.e. over subgradient SGD's, step {finest:g}/L"
        checks.append(below(what, share / abs(wrong["bias"]), 1.0))
    last = tends[len(sizes.passes) - 1 :: len(sizes.passes)]
    findings.append(
        "Lasso, without a noise floor: "
        + ", ".join(
            f"{r['solver']} has a median error of {r['median relative error']:.1g} after "
            f"{r['passes']:g} passes"
            for r in last
        )
        + "."
    )
    checks += [
        below(f"lasso: median error of {r['solver']}, all passes", r["median relative error"], 1e-2)
        for r in last
    ]
    narrow, wide = smooth[-1], smooth[0]
    findings.append(
        f"Hinge, smoothed: width {wide['width']:g} leaves {wide['exact bias']:.3g} of exact bias, "
        f"{narrow['width']:g} leaves {narrow['exact bias']:.3g}, for {narrow['steps of SGD']} "
        f"steps in place of {wide['steps of SGD']} (SGD measured: "
        f"{measure.show(narrow['bias of SGD'], narrow['s.e.'])})."
    )
    return findings, checks


def _draw(biases: Any, tends: Any, hinge: Any, smooth: Any, sparse: Any, sizes: Sizes) -> Any:
    made, axes = figure(1, 4, 15, 4.2)
    draw, limit = measure.plot, "limit of subgradient SGD"
    for ax, name in zip(axes[0], sparse, strict=False):
        for j, way in enumerate(("proximal SGD", "subgradient SGD")):
            rows = [r for r in biases if (r["problem"], r["estimator"]) == (name, way)]
            draw(ax, j, rows, "step x L", "bias", "s.e.", 4, label=way)
        at_rest = next(r for r in biases if r["problem"] == name)[limit]
        ax.axhline(at_rest, color=measure.COLOURS[1], ls=":", label="its limit, small steps")
        ax.set(xscale="log", title=f"{name}: d / d log lam1", xlabel="step x L")
        ax.set(ylabel="relative bias")
        ax.set_xticks(sizes.steps, [f"{step:g}" for step in sizes.steps])
        ax.minorticks_off()
    ax = axes[0, 2]
    for j, solver in enumerate(dict.fromkeys(r["solver"] for r in tends)):
        rows = [r for r in tends if r["solver"] == solver]
        draw(ax, j + 2, rows, "passes", "median relative error", label=solver)
    ax.set(yscale="log", title="lasso: solvers without a floor", xlabel="passes over the data")
    ax.set(ylabel="median relative error")
    ax = axes[0, 3]
    draw(ax, 0, smooth, "width", "exact bias", marker="", label="smoothed, exact")
    draw(ax, 0, smooth, "width", "bias of SGD", "s.e.", 4, ls="", label="smoothed, SGD")
    finest = min(hinge, key=lambda r: r["step x L"])
    ax.axhline(finest["bias"], color=measure.COLOURS[1], label="subgradient SGD")
    ax.axhline(finest[limit], color=measure.COLOURS[1], ls=":", label="its limit")
    ax.set(xscale="log", title="hinge: d / d log lam", xlabel="width of the smoothing")
    ax.set(ylabel="relative bias")
    for ax in axes[0]:
        ax.legend(fontsize=8)
    for ax in (axes[0, 0], axes[0, 1], axes[0, 3]):
        ax.axhline(0, color="0.3", linewidth=1)
    about = "Forward over each solver, tail averaged; bars: 4 s.e. Exact: active sets, NumPy."
    caption(made, about)
    return made


if __name__ == "__main__":
    sys.exit(command("seed_nonsmooth", __doc__, run, FULL, QUICK))

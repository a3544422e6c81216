r"""Many hyperparameters, 1e2 to 1e5: forward, sketches of it, reverse, implicit.

Two kinds of p hyperparameters, both with an exact answer in closed form:

    feature: ridge, one log penalty per feature, p = d; every step touches every hyperparameter
    example: least squares, one log weight per example, p = n; a step touches those of its batch

``Forward`` costs 1 + p calls a step and p copies of the parameters; ``Reverse`` and ``Implicit``
do not grow with p. Sketches pay m calls for an unbiased answer whose squared error is, relative,
``(p - 1) / m`` for m random sign directions: noise that only as many directions as
hyperparameters remove. UORO takes fresh signs at each step, at rank one.
"""

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.estimators.call import compiled_step
from experiments.studies.base import (
    Check,
    Result,
    Track,
    below,
    caption,
    command,
    figure,
    near,
    quiet,
)
from experiments.studies.open_questions import measure, problems


@dataclass(frozen=True)
class Sizes:
    """Numbers of hyperparameters, the most for all of forward mode, sketch size m, SGD, seeds."""

    counts: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    forward_up_to: int = 1_000
    sketch: int = 16
    steps: int = 150
    seeds: int = 6


FULL = Sizes()
QUICK = Sizes(counts=(30, 300, 3_000), forward_up_to=300, seeds=4)

ROWS, FEATURES, BATCH, PENALTY = 64, 10, 8, 0.1
WARNED = 0.5  # the relative error above which `bl.hypergradient` warns


def _squares(w: Any, hyper: Any, batch: Any) -> Any:
    return jnp.mean((batch["X"] @ w - batch["y"]) ** 2) / 2


def _per_feature(w: Any, hyper: Any, batch: Any) -> Any:
    return _squares(w, hyper, batch) + jnp.sum(jnp.exp(hyper) * w**2) / 2


def _per_example(w: Any, hyper: Any, batch: Any) -> Any:
    weights = jnp.exp(hyper[batch["i"]])
    return jnp.mean(weights * (batch["X"] @ w - batch["y"]) ** 2) / 2 + PENALTY * jnp.sum(w**2) / 2


PROBLEMS = {
    "feature": bl.Problem(_per_feature, _squares, quadratic=True),
    "example": bl.Problem(_per_example, _squares, quadratic=True),
}


def make_case(kind: str, p: int, seed: int) -> problems.Setting:
    """A problem with p hyperparameters and its exact hypergradient."""
    n, d = (ROWS, p) if kind == "feature" else (p, FEATURES)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n + ROWS, d)) / d**0.5
    y = X @ (2 * rng.standard_normal(d)) + 0.5 * rng.standard_normal(n + ROWS)
    return make_table_case(kind, X, y, n, rng)


def make_table_case(kind: str, X: Any, y: Any, n: int, rng: Any) -> problems.Setting:
    """Return the problem on a table, ``n`` rows of which train and the others validate."""
    d, base = X.shape[1], np.log(PENALTY) if kind == "feature" else 0
    hyper = rng.uniform(-0.3, 0.3, d if kind == "feature" else n) + base
    inner: dict[str, Any] = {"X": X[:n], "y": y[:n]}
    if kind == "example":
        inner["i"] = np.arange(n)
    data = bl.Data(inner=inner, outer={"X": X[n:], "y": y[n:]})
    solve = _solve_per_feature if kind == "feature" else _solve_per_example
    exact = solve(X[:n], y[:n], X[n:], y[n:], hyper)
    most = float((X**2).sum(1).max() * (1 if kind == "feature" else np.exp(0.3)) + 2 * PENALTY)
    problem = PROBLEMS[kind]
    return problems.Setting(kind, problem, hyper, np.zeros(d), data, exact, PENALTY / 2, most)


def _solve_per_feature(X: Any, y: Any, V: Any, c: Any, hyper: Any) -> np.ndarray:
    """``-v_j lam_j w_j`` with ``H = X^T X / n + diag(lam)`` inverted by Woodbury's identity."""
    lam, n = np.exp(hyper), len(y)
    small = np.linalg.inv(n * np.eye(n) + (X / lam) @ X.T)

    def inverse(b: np.ndarray) -> np.ndarray:
        return b / lam - (X.T @ (small @ (X @ (b / lam)))) / lam

    w = inverse(X.T @ y / n)
    return -inverse(V.T @ (V @ w - c) / len(c)) * lam * w


def _solve_per_example(X: Any, y: Any, V: Any, c: Any, hyper: Any) -> np.ndarray:
    """``-(v.x_i) weight_i (x_i.w - y_i) / n``."""
    weights, n = np.exp(hyper), len(y)
    H = X.T @ (X * weights[:, None]) / n + PENALTY * np.eye(X.shape[1])
    w = np.linalg.solve(H, X.T @ (weights * y) / n)
    v = np.linalg.solve(H, V.T @ (V @ w - c) / len(c))
    return -(X @ v) * weights * (X @ w - y) / n


def make_methods(at: problems.Setting, sizes: Sizes) -> dict[str, Any]:
    """The estimators, all on the same SGD; forward mode only where its tangents fit."""
    sgd, steps = bl.SGD(0.8 / at.largest, batch_size=BATCH), sizes.steps
    all_of_it = {"forward": bl.Forward(sgd, steps, average=steps // 2)}
    return {
        **(all_of_it if at.exact.size <= sizes.forward_up_to else {}),
        f"{sizes.sketch} random directions": bl.Forward(
            sgd, steps, average=steps // 2, directions=sizes.sketch
        ),
        f"UORO x {sizes.sketch}": bl.Replicated(bl.UORO(sgd, steps), sizes.sketch),
        "reverse": bl.Reverse(sgd, steps),
        "implicit": bl.Implicit(sgd, steps, linear=bl.CG(tol=1e-6), average=steps // 2),
    }


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """All estimators at all numbers of hyperparameters of both kinds."""
    rows = []
    for kind, p in track([(k, p) for k in PROBLEMS for p in sizes.counts], "hyperparameters"):
        at = make_case(kind, p, seed)
        methods = make_methods(at, sizes).items()
        rows += [assess_estimator(at, name, one, sizes.seeds, seed) for name, one in methods]
    findings, checks = _conclude(rows, sizes)
    drawn = _draw(rows, sizes)
    return Result("Many hyperparameters", drawn, {"estimators": rows}, findings, checks)


def assess_estimator(
    at: problems.Setting, name: str, one: Any, seeds: int, seed: int
) -> dict[str, Any]:
    """Return the error, the cost and the memory of an estimator, over as many keys as ``seeds``."""
    arguments = at.problem, one, jnp.asarray(at.hyper), jnp.asarray(at.params), at.data
    compiled, call = compiled_step(*arguments, jax.random.key(seed))
    jax.block_until_ready(call())
    errors, cosines, seconds, reported, paid = [], [], [], [], 0.0
    for s in range(seeds):
        key = jax.random.key(seed + 1 + s)
        begun = time.perf_counter()
        # What the evidence says of each is summed up in one line, see `summarise_evidence`.
        called = bl.hypergradient(*arguments, key, max_error=math.inf)
        estimate, _ = jax.block_until_ready(called)
        if s:  # the first call compiles
            seconds.append(time.perf_counter() - begun)
        g, size = np.asarray(estimate.grad), np.linalg.norm(at.exact)
        errors.append(np.linalg.norm(g - at.exact) / size)
        reported.append(float(estimate.relative_error) > WARNED)
        cosines.append(g @ at.exact / (np.linalg.norm(g) * size))
        paid = measure.price(one, bl.Counts(*map(float, estimate.evidence.counts)), at.examples)
    squares = np.square(errors)
    return {
        "kind": at.name,
        "p": at.exact.size,
        "estimator": name,
        "relative error": float(squares.mean() ** 0.5),
        "s.e.": float(np.std(squares, ddof=1) / (2 * (seeds * squares.mean()) ** 0.5)),
        "cosine": float(np.mean(cosines)),
        "gradients": round(paid),
        "reported": sum(reported),
        "ms": float(1e3 * np.median(seconds)),
        "scratch MiB": getattr(compiled.memory_analysis(), "temp_size_in_bytes", np.nan) / 2**20,
    }


def summarise_evidence(rows: Any, seeds: int) -> str:
    """Return which estimators say themselves that they are off, instead of a warning for each."""
    names = dict.fromkeys(r["estimator"] for r in rows)
    said = {n: sum(r["reported"] for r in rows if r["estimator"] == n) for n in names}
    of = {n: seeds * sum(r["estimator"] == n for r in rows) for n in names}
    each = ", ".join(f"{n} {said[n]} of {of[n]}" for n in names)
    return f"Estimates whose own evidence says a relative error above {WARNED:g}: {each}."


def _conclude(rows: Any, sizes: Sizes) -> tuple[list[str], list[Check]]:
    def at(kind: str, name: str, p: int) -> dict[str, Any]:
        return next(r for r in rows if (r["kind"], r["estimator"], r["p"]) == (kind, name, p))

    most, sketch = sizes.counts[-1], f"{sizes.sketch} random directions"
    findings = []
    for kind in PROBLEMS:
        here = [r for r in rows if (r["kind"], r["p"]) == (kind, most)]
        said = ", ".join(
            f"{r['estimator']} {measure.show(r['relative error'], r['s.e.'])} ({r['cosine']:.2f})"
            for r in here
        )
        findings.append(f"One per {kind}, p = {most}: relative error (cosine) {said}.")
    biggest = max(p for p in sizes.counts if p <= sizes.forward_up_to)
    forward, reverse = at("feature", "forward", biggest), at("feature", "reverse", biggest)
    findings.append(
        f"At p = {biggest} per feature forward takes {forward['ms'] / reverse['ms']:.0f} times "
        f"the time of reverse ({forward['ms']:.0f} ms against {reverse['ms']:.1f} ms) and "
        f"{forward['scratch MiB']:.0f} MiB against {reverse['scratch MiB']:.1f} MiB; at p = "
        f"{most} a call of reverse takes {at('feature', 'reverse', most)['ms']:.0f} ms, one of "
        f"implicit {at('feature', 'implicit', most)['ms']:.0f} ms."
    )
    lost = at("example", "reverse", most), at("example", "implicit", most)
    findings.append(
        f"Per example at p = {most}, SGD draws {sizes.steps * BATCH} examples in all: the "
        f"derivative of its iterates is blind to the rest (error {lost[0]['relative error']:.2g}), "
        f"where implicit differentiation reads all of them once (error "
        f"{lost[1]['relative error']:.2g})."
    )
    findings.append(summarise_evidence(rows, sizes.seeds))
    checks = []
    for p in sizes.counts[1:]:
        row, theory = at("feature", sketch, p), ((p - 1) / sizes.sketch) ** 0.5
        ratio, error = row["relative error"] / theory, row["s.e."] / theory
        # The estimate sees |D^T grad| of its own run: a few per cent off the exact one.
        checks.append(
            near(f"error of {sketch} over sqrt((p - 1) / m), p = {p}", ratio, 1.0, 4 * error + 0.15)
        )
    worst = max(at("feature", "implicit", p)["relative error"] for p in sizes.counts)
    checks.append(below("implicit, per feature: relative error at every p", worst, 0.5))
    return findings, checks


def _draw(rows: Any, sizes: Sizes) -> Any:
    made, axes = figure(1, 4, 16, 4.2)
    names = list(dict.fromkeys(r["estimator"] for r in rows))
    errors = [(kind, "relative error") for kind in ("feature", "example")]
    panels = [*errors, ("feature", "ms"), ("feature", "scratch MiB")]
    for ax, (kind, what) in zip(axes[0], panels, strict=True):
        for j, name in enumerate(names):
            these = [r for r in rows if (r["kind"], r["estimator"]) == (kind, name)]
            bars = "s.e." if what == "relative error" else None
            measure.plot(ax, j, these, "p", what, bars, label=name)
        label = {"ms": "milliseconds a call", "scratch MiB": "scratch memory, MiB"}.get(what, what)
        ax.set(xscale="log", yscale="log", xlabel="hyperparameters p", ylabel=label)
        ax.set_title(f"one per {kind}")
    p = np.array(sizes.counts)
    for ax in axes[0, :2]:
        ax.plot(p, ((p - 1) / sizes.sketch) ** 0.5, ":", color="0.3", label="sqrt((p - 1) / m)")
    axes[0, 0].legend(fontsize=8)
    caption(made, f"SGD, {sizes.steps} steps on batches of {BATCH}; root mean square error, 2 s.e.")
    return made


if __name__ == "__main__":
    sys.exit(command("seed_many", __doc__, run, FULL, QUICK))

r"""Not strongly convex: a small tanh network under weight decay, from strong to almost none.

There are two targets. ``Forward`` is at any number of steps the exact gradient of the outer loss
at the K-th iterate, on average over minibatches. The gradient at the minimum that the run ends in
is another one; the iterates' derivative reaches it after about 1 / (step x smallest curvature)
steps. The reference of each run is Newton's
method from where it ended, with a dense adjoint: so every run is judged at its own minimum.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet
from experiments.studies.open_questions import measure
from experiments.studies.open_questions.data_sets import make_network


@dataclass(frozen=True)
class Sizes:
    """Weight decays, numbers of steps, runs per point."""

    decays: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)
    steps: tuple[int, ...] = (500, 2_000, 6_000)
    runs: int = 60
    real: bool = False


FULL = Sizes()
QUICK = Sizes(decays=(0.1, 0.01, 0.001), steps=(500, 2_000), runs=40)

STEP, BATCH = 0.1, 4


def make_methods(steps: int) -> dict[str, Any]:
    """The estimators that are compared, all on the same number of steps."""
    sgd, cg = bl.SGD(STEP, batch_size=BATCH), bl.CG(tol=1e-6, max_steps=50)
    return {
        "forward, SGD": bl.Forward(sgd, steps),
        "forward, SGD, tail average": bl.Forward(sgd, steps, average=steps // 2),
        "forward, full batch": bl.Forward(bl.GradientDescent(STEP), steps),
        "implicit, CG": bl.Implicit(sgd, steps, linear=cg),
        "implicit, CG, damping 0.01": bl.Implicit(sgd, steps, linear=cg, damping=0.01),
    }


@partial(jax.jit, static_argnames="problem")
def _make_runs(
    problem: bl.Problem, estimator: Any, hyper: Any, params: Any, data: Any, keys: Any
) -> Any:
    """The gradient of each run, and where it ended."""

    def one(key: Any) -> Any:
        estimate, state = bl.hypergradient(problem, estimator, hyper, params, data, key)
        return ravel_pytree(estimate.grad)[0], state.params

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnames="problem")
def _find_minimum(problem: bl.Problem, hyper: Any, ends: Any, data: Any) -> Any:
    """The gradient at the minimum next to each end, the curvature there, whether it is one."""
    # CG in Newton steps: it goes downhill where the Hessian is indefinite, a dense solve cannot.
    reference = bl.Implicit(bl.Newton(), steps=200, linear=bl.Dense())

    def one(end: Any) -> Any:
        exact, there = bl.hypergradient(problem, reference, hyper, end, data, jax.random.key(0))
        flat, unravel = ravel_pytree(there.params)
        slope = jax.grad(lambda w: problem.inner(unravel(w), hyper, data.inner))
        found = jnp.linalg.norm(slope(flat)) < 1e-8
        return ravel_pytree(exact.grad)[0], jnp.linalg.eigvalsh(jax.jacobian(slope)(flat))[0], found

    return jax.vmap(one)(ends)


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """All estimators at all decays and numbers of steps."""
    case = make_network(sizes.real, seed)
    rows: list[dict[str, Any]] = []
    for steps in track(sizes.steps, "steps"):
        for name, estimator in make_methods(steps).items():
            rows += [_make_row(case, name, estimator, steps, d, sizes, seed) for d in sizes.decays]
    gap = measure_gap(case, sizes.steps[0], sizes.decays[-1], 8, seed)
    findings, checks = _conclude(rows, gap, sizes)
    title = "Not strongly convex: a small network"
    return Result(title, _draw(rows, sizes), {"error": rows}, findings, checks)


def _make_row(
    case: bl.testing.Case,
    name: str,
    estimator: Any,
    steps: int,
    decay: float,
    sizes: Sizes,
    seed: int,
) -> dict[str, Any]:
    hyper = jax.tree.map(lambda h: np.full_like(h, np.log(decay)), case.hyper)
    keys = jax.random.split(jax.random.key(seed + 1), sizes.runs)
    got, ends = _make_runs(case.problem, estimator, hyper, case.params, case.data, keys)
    exact, curvature, found = _find_minimum(case.problem, hyper, ends, case.data)
    errors = np.linalg.norm(got - exact, axis=1) / np.linalg.norm(exact, axis=1)
    good = np.asarray(found) & np.isfinite(errors) & (np.asarray(curvature) > 0)
    errors, curvature = np.asarray(errors)[good], np.asarray(curvature)[good]
    low, middle, high = np.quantile(errors, [0.1, 0.5, 0.9]) if good.any() else [np.nan] * 3
    return {
        "decay": decay,
        "steps": steps,
        "estimator": name,
        "median error": float(middle),
        "s.e.": _estimate_median_error(errors),
        "10 %": float(low),
        "90 %": float(high),
        "smallest curvature": float(np.median(curvature)) if good.any() else np.nan,
        "runs": int(good.sum()),
    }


def _estimate_median_error(errors: np.ndarray) -> float:
    """Bootstrap standard error of the median."""
    if len(errors) < 2:
        return 0.0
    drawn = np.random.default_rng(0).choice(errors, (400, len(errors)))
    return float(np.median(drawn, axis=1).std())


def measure_gap(case: bl.testing.Case, steps: int, decay: float, runs: int, seed: int) -> float:
    """How far the mean of ``Forward`` is from differences of the mean outer loss, relative."""
    estimator = make_methods(steps)["forward, SGD"]
    keys = jax.random.split(jax.random.key(seed), runs)

    def outer(log_decay: Any, key: Any) -> Any:
        hyper = jax.tree.map(lambda h: log_decay, case.hyper)
        end = bl.solve(
            case.problem, estimator.solver, hyper, case.params, case.data, key, steps=steps
        )
        return case.problem.outer(end, hyper, case.data.outer)

    mean = jax.jit(lambda h: jnp.mean(jax.vmap(partial(outer, h))(keys)))
    h, small = np.log(decay), 1e-4
    difference = (mean(h + small) - mean(h - small)) / (2 * small)

    @jax.jit
    def forward(h: Any) -> Any:
        hyper = jax.tree.map(lambda _: h, case.hyper)
        one = partial(bl.hypergradient, case.problem, estimator, hyper, case.params, case.data)
        grads = jax.vmap(lambda key: one(key)[0].grad)(keys)
        return sum(jnp.mean(leaf) for leaf in jax.tree.leaves(grads))

    return float(jnp.abs(forward(jnp.asarray(h)) / difference - 1))


def _conclude(rows: Any, gap: float, sizes: Sizes) -> tuple[list[str], list[Check]]:
    most = sizes.steps[-1]

    def at(name: str, decay: float, steps: int = most) -> dict[str, Any]:
        key = (name, decay, steps)
        return next(r for r in rows if (r["estimator"], r["decay"], r["steps"]) == key)

    findings = [
        f"Forward is the gradient of the mean outer loss at K = {sizes.steps[0]} whatever the "
        f"curvature: its distance to finite differences is {gap:.1g}, relative, at decay "
        f"{sizes.decays[-1]:g}."
    ]
    for decay in sizes.decays[:: len(sizes.decays) // 2]:
        parts = [
            f"{name} {measure.show(at(name, decay)['median error'], at(name, decay)['s.e.'])}"
            for name in make_methods(most)
        ]
        findings.append(
            f"Decay {decay:g} (smallest curvature "
            f"{at('forward, SGD', decay)['smallest curvature']:.2g}): median distance to "
            f"the gradient at the run's own minimum, relative, K = {most}: "
            + ", ".join(parts)
            + "."
        )
    smooth = [at("forward, full batch", d)["median error"] for d in sizes.decays]
    noisy = [at("forward, SGD", d)["median error"] for d in sizes.decays]
    share = [s / n for s, n in zip(smooth, noisy, strict=True)]
    blame = [d for d, s in zip(sizes.decays, share, strict=True) if s < 0.5]
    findings.append(
        "Without noise the distance is "
        + ", ".join(f"{s:.2g}" for s in smooth)
        + f" over the decays {', '.join(f'{d:g}' for d in sizes.decays)}: minibatch noise is most "
        f"of SGD's error at {', '.join(f'{d:g}' for d in blame) or 'none of them'}, the unfinished "
        "transient at the others."
    )
    checks = [
        below("Forward against finite differences, relative", gap, 1e-5),
        below(f"full-batch forward, decay {sizes.decays[0]:g}: distance", smooth[0], 1e-3),
        Check(
            "distance of full-batch forward at the least decay over that at the most",
            smooth[-1] / smooth[0],
            "more than 1",
            smooth[-1] > smooth[0],
        ),
    ]
    return findings, checks


def _draw(rows: Any, sizes: Sizes) -> Any:
    made, axes = figure(1, 3, 13, 4.3)
    left, middle, right = axes[0]
    most = sizes.steps[-1]
    found = [r for r in rows if r["runs"]]
    for j, name in enumerate(make_methods(most)):
        these = [r for r in found if (r["estimator"], r["steps"]) == (name, most)]
        measure.plot(left, j, these, "decay", "median error", label=name)
        if "full" not in name:
            bands = ([r[q] for r in these] for q in ("10 %", "90 %"))
            x = [r["decay"] for r in these]
            left.fill_between(x, *bands, color=measure.COLOURS[j], alpha=0.12)
    left.set(title=f"K = {most}", ylabel="distance to the minimum's gradient, relative")
    left.set(xscale="log", yscale="log", xlabel="weight decay", ylim=(3e-3, 30))
    for j, decay in enumerate(sizes.decays[::2]):
        for name, line in (("forward, SGD", "-"), ("forward, full batch", ":")):
            these = [r for r in found if (r["estimator"], r["decay"]) == (name, decay)]
            label = f"{name}, decay {decay:g}"
            measure.plot(middle, j, these, "steps", "median error", ls=line, label=label)
    middle.set(xscale="log", yscale="log", xlabel="steps K", title="more steps", ylim=(1e-4, 10))
    middle.set_xticks(sizes.steps, [str(k) for k in sizes.steps])
    middle.minorticks_off()
    full = [r for r in found if r["estimator"] == "forward, full batch"]
    full = [{**r, "x": STEP * r["smallest curvature"] * r["steps"]} for r in full]
    for j, steps in enumerate(sizes.steps):
        some = [r for r in full if r["steps"] == steps]
        measure.plot(right, j, some, "x", "median error", ls="", label=f"K = {steps}")
    x = np.geomspace(0.02, 40, 200)
    right.plot(x, (1 + x) * np.exp(-x), ":", color="0.3", label="(1 + x) exp(-x)")
    right.set(xscale="log", yscale="log", xlabel="x = step x smallest curvature x K")
    right.set(title="full batch: the transient", ylim=(1e-16, 10))
    for ax in axes[0]:
        ax.legend(fontsize=7)
    text = "Tanh network of 13 weights, batches of 4, step 0.1; bands: 10 to 90 % of the runs."
    caption(made, text)
    return made


if __name__ == "__main__":
    options = {"real": "two columns of diabetes instead of synthetic data"}
    sys.exit(command("seed_network", __doc__, run, FULL, QUICK, options=options))

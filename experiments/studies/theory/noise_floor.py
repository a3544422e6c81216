"""How far SGD, momentum, Newton, natural gradient and Adam stay from the minimum of a quadratic.

Covariance of the iterates at rest against the step size, up to its limit, for a Hessian and a noise
covariance that do not commute: `bilevel.noise.steady_state` and `.preconditioned` against simulated
chains, and against what continuous time says. Setting: three dimensions, curvatures 0.2, 0.7, 1,
additive noise; after arXiv:2012.03636; the Fisher matrix of natural gradient is
held at its fixed point. About 30 s with --quick, else some minutes.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bilevel.noise.quadratic import preconditioned, steady_state
from experiments.studies import base
from experiments.studies.theory import noise_chains
from experiments.studies.theory.noise_cells import (
    BATCH,
    MOMENTA,
    Cell,
    make_cells,
    make_matrices,
    solve_lyapunov,
)


@dataclass(frozen=True)
class Sizes:
    """Chains, and their steps before and during the measurement; Adam apart."""

    chains: int = 400
    burn: int = 800
    steps: int = 1600
    adam_chains: int = 400
    adam_burn: int = 6000


FULL = Sizes()
QUICK = Sizes(200, 300, 600, adam_chains=60, adam_burn=4000)
ADAM = (0.02, 0.05, 0.1, 0.2, 0.5)


_adam = jax.jit(preconditioned.adam)


def run(sizes: Sizes, seed: int, track: base.Track) -> base.Result:
    """Simulate every cell, and Adam."""
    K, C = make_matrices(seed)
    grid, key = make_cells(K, C), jax.random.key(seed)
    rows, z = simulate(K, grid, sizes, key, track)
    adams = measure_adam(K, C, sizes, jax.random.fold_in(key, 1))
    residual = max(
        float(steady_state.residual(c.exact, K, c.noise, c.rate, c.momentum)) for c in grid
    )
    scipy = max(solve_lyapunov(K, cell) for cell in grid)
    wrong = max(row["error beyond 4 s.e."] for row in adams)
    checks = [
        base.below("residual of the covariance equation", residual, 1e-10),
        base.below("relative distance from SciPy's discrete Lyapunov solution", scipy, 1e-10),
        base.below(f"largest |z| of {z.size} entries of covariances", float(np.abs(z).max()), 4.0),
        base.below("Adam, relative error beyond 4 standard errors", wrong, 0.03),
    ]
    off = {(r["momentum"], r["setting"]): r for r in rows if r["method"] == "SGD"}
    near, edge = off[0.9, 0.05], off[0.0, 0.99]
    findings = [
        f"{z.size} entries of {len(grid)} covariances, with step sizes up to 0.99 of the limit, "
        f"are simulated within {np.abs(z).max():.2f} standard errors; independent normal numbers "
        f"would exceed 4 with a probability of {z.size * 6.3e-5:.1%}.",
        f"Continuous time misses the covariance by {edge['continuous time, error']:.0%} at 0.99 of "
        f"the limit, and with momentum 0.9 by {near['continuous time, error']:.0%} at 0.05 of it.",
        f"Adam's fixed point is within {max(abs(r['ratio'] - 1) for r in adams):.1%} of the loss "
        f"floor of real Adam, whose standard error is up to "
        f"{max(r['standard error'] for r in adams):.1%}; the floor grows slower than the step with "
        "b1 = 0.9, faster without.",
    ]
    tables = {"heavy ball": rows, "Adam": adams}
    picture = draw(K, C, rows, adams, z)
    title = "Noise floor: covariance against the step size"
    return base.Result(title, picture, tables, findings, checks, {"K": K, "C": C, "z": z})


def simulate(
    K: np.ndarray, grid: list[Cell], sizes: Sizes, key: Any, track: base.Track
) -> tuple[base.Table, np.ndarray]:
    """A row for each cell, and z scores of the entries on and above the diagonal."""
    rows, z, upper = [], [], np.triu_indices(3)
    groups = [grid[i : i + 9] for i in range(0, len(grid), 9)]
    for i, group in enumerate(track(groups, "chains")):
        roots = np.stack([np.linalg.cholesky(cell.noise) for cell in group])
        rates = np.stack([cell.rate for cell in group])
        momenta = np.array([cell.momentum for cell in group])
        keys = jax.random.split(jax.random.fold_in(key, 10 + i), len(group))
        size = {"chains": sizes.chains, "burn": sizes.burn, "steps": sizes.steps}
        samples = noise_chains.simulate_heavy_ball(K, roots, rates, momenta, keys, **size)
        for cell, mean, error in zip(group, *noise_chains.estimate_errors(samples), strict=True):
            z.append(((mean - cell.exact) / error)[upper])
            gap = np.linalg.norm(cell.continuous - cell.exact) / np.linalg.norm(cell.exact)
            rows.append(
                {
                    "method": cell.method,
                    "momentum": cell.momentum,
                    "setting": cell.setting,
                    "floor": np.trace(K @ cell.exact) / 2,
                    "chains": np.trace(K @ mean) / 2,
                    "continuous time": np.trace(K @ cell.continuous) / 2,
                    "continuous time, error": gap,
                    "max |z|": np.abs(z[-1]).max(),
                }
            )
    return rows, np.concatenate(z)


def measure_adam(K: np.ndarray, C: np.ndarray, sizes: Sizes, key: Any) -> base.Table:
    """Real Adam against the fixed point that holds its denominator still."""
    settings = [(lr, b1) for b1 in (0.0, 0.9) for lr in ADAM]
    rates, momenta = (np.array(column) for column in zip(*settings, strict=True))
    size = {"chains": sizes.adam_chains, "burn": sizes.adam_burn, "steps": sizes.steps}
    keys = jax.random.split(key, len(settings))
    samples = noise_chains.simulate_adam(K, np.linalg.cholesky(C), rates, momenta, keys, **size)
    rows = []
    for (lr, b1), mean, error in zip(settings, *noise_chains.estimate_errors(samples), strict=True):
        exact = np.asarray(_adam(K, C, lr, b1)[0])
        excess = np.maximum(np.abs(mean - exact) - 4 * error, 0).max() / np.abs(exact).max()
        floor, found = np.trace(K @ exact) / 2, np.trace(K @ mean) / 2
        rows.append(
            {
                "b1": b1,
                "step size": lr,
                "fixed point": floor,
                "real Adam": found,
                "ratio": found / floor,
                "standard error": np.trace(K @ error) / 2 / floor,
                "error beyond 4 s.e.": excess,
            }
        )
    return rows


def draw(K: Any, C: Any, rows: base.Table, adams: base.Table, z: Any) -> Any:
    """Floors of the four methods, the error of continuous time, and the z scores."""
    figure, axes = base.figure(2, 3, 13, 7.2)
    (sgd, error, newton), (fisher, of_adam, scores) = axes
    fine = np.concatenate([np.geomspace(0.02, 0.5, 20), 1 - np.geomspace(0.5, 0.005, 30)])
    for color, mu in zip(("C0", "C1", "C2"), MOMENTA, strict=True):
        limit = float(steady_state.step_limit(K, mu))
        name = {"color": color, "label": f"momentum {mu:g}"}
        both = [
            (
                steady_state.covariance(K, C, s * limit, mu),
                steady_state.continuous_covariance(K, C, s * limit, mu),
            )
            for s in fine
        ]
        exact, past = (np.array(side) for side in zip(*both, strict=True))
        newtons = [preconditioned.newton(K, C, 2 * s * (1 + mu), mu) for s in fine]
        sgd.plot(fine, np.trace(K @ exact, axis1=1, axis2=2) / 2, **name)
        sgd.plot(fine, np.trace(K @ past, axis1=1, axis2=2) / 2, "--", color=color, alpha=0.7)
        gap = np.linalg.norm(past - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
        error.plot(fine, gap, **name)
        newton.plot(fine, np.trace(K @ np.array(newtons), axis1=1, axis2=2) / 2, **name)
        lam = np.array([0.0, 1.0])
        slope = np.trace(K @ np.asarray(preconditioned.natural_gradient(K, 1.0, BATCH, mu))) / 2
        fisher.plot(lam, slope * lam, **name)
        _draw_dots(sgd, rows, "SGD", mu, color)
        _draw_dots(newton, rows, "Newton", mu, color)
        _draw_dots(fisher, rows, "natural gradient", mu, color)
    sgd.plot([], [], "--", color="0.4", label="continuous time")
    sgd.plot([], [], "ko", markersize=4, label="simulated chains")
    for color, b1 in (("C0", 0.0), ("C2", 0.9)):
        mine = [row for row in adams if row["b1"] == b1]
        lrs = np.geomspace(ADAM[0], ADAM[-1], 25)
        floors = [np.trace(K @ np.asarray(_adam(K, C, s, b1)[0])) / 2 for s in lrs]
        of_adam.plot(lrs, floors / lrs, color=color, label=f"b1 = {b1:g}")
        x, y, bar = np.array(
            [[row["step size"], row["real Adam"], row["standard error"]] for row in mine]
        ).T
        of_adam.errorbar(x, y / x, 2 * y / x * bar, fmt="o", color=color, markersize=4)
    scores.hist(z, bins=np.linspace(-4, 4, 25), density=True, color="C0", alpha=0.5)
    x = np.linspace(-4, 4, 100)
    scores.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="k", label="standard normal")
    _label_axes(axes)
    base.caption(
        figure,
        "Quadratic loss in three dimensions, curvatures 0.2, 0.7, 1, additive noise that does not "
        "commute with the Hessian. Lines: closed forms; dots: means over simulated chains.\n"
        "The limit of the step size is 2 (1 + momentum) / largest curvature for SGD and "
        f"2 (1 + momentum) for Newton. Natural gradient: batch {BATCH}, noise of covariance J / B. "
        "Adam: 2 s.e.",
    )
    return figure


def _draw_dots(axes: Any, rows: base.Table, method: str, mu: float, color: str) -> None:
    mine = [row for row in rows if (row["method"], row["momentum"]) == (method, mu)]
    axes.plot(
        [row["setting"] for row in mine],
        [row["chains"] for row in mine],
        "o",
        color=color,
        markersize=4,
    )


def _label_axes(axes: Any) -> None:
    """Titles, scales and legends, panel by panel."""
    floor, fraction = "loss floor  Tr[K S] / 2", "step size / its limit"
    words = [
        ("SGD", fraction, floor, "log"),
        ("continuous time: relative error of S", fraction, "|S_continuous - S| / |S|", "log"),
        ("damped Newton", fraction, floor, "log"),
        ("natural gradient", "step size", floor, "linear"),
        ("Adam (b2 = 0.999)", "step size", "loss floor / step size", "linear"),
        ("all entries of all covariances", "z score of the chains", "density", "linear"),
    ]
    for at, (title, x, y, scale) in zip(axes.flat, words, strict=True):
        at.set(title=title, xlabel=x, ylabel=y, yscale=scale)
        at.legend(fontsize=8)
    axes[0, 1].set_xscale("log")
    axes[1, 1].set_xscale("log")
    axes[1, 1].set_xticks(ADAM, [f"{step:g}" for step in ADAM])
    axes[1, 1].minorticks_off()


if __name__ == "__main__":
    sys.exit(base.command("noise_floor", __doc__, run, FULL, QUICK))

"""How many steps SGD takes to leave: a smooth barrier, a quadratic trap, a saddle.

Exact mean first-passage times of the discrete chain (`bilevel.noise.escape`) against Kramers'
formula with the temperature of continuous time and with that of the discrete chain, against
independent draws, and against HA-SME, a differential equation that has the law of SGD at every
step but is watched in between (`bilevel.noise.sde`). One dimension, Gaussian noise; nothing is
simulated. After arXiv:2012.03636 and arXiv:2405.18373. About 20 s with --quick, else a minute.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from bilevel.noise.continuous_time import escape, sde
from bilevel.noise.continuous_time import modified_equation as me
from experiments.studies import base


@dataclass(frozen=True)
class Sizes:
    """Heights of the barrier over `eta s^2 / 2`, and radii of trap and saddle over their sd."""

    heights: tuple[float, ...] = (4.0, 6.0, 8.0, 10.0, 12.0)
    radii: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0, 3.5)
    far: tuple[float, ...] = (20.0, 30.0, 50.0, 100.0)


FULL = Sizes()
QUICK = Sizes((6.0, 10.0, 12.0), (2.5, 3.5), (20.0, 100.0))
STEPS = (0.1, 0.5, 0.9)  # eta, where the curvature at the minimum is 1
GROWTHS = (0.1, 0.5, 1.0)  # eta times minus the curvature of a saddle
COLORS = ("C0", "C1", "C2")
EXPONENTS = {0.1: 0.997, 0.5: 0.982, 0.9: 0.930}  # reference: of exp(2 dL / (eta s^2))
HALF = 0.6351814  # E[-log |Z|], Z standard normal


def time_chain(mean: Any, spread: float, end: float, nodes: int = 200) -> float:
    """Mean steps of the discrete chain out of `|x| < end`, from 0."""
    return float(escape.first_passage_steps(mean, spread, (-end, end), 0.0, nodes))


def time_model(curvature: Any, slope: Any, eta: float, variance: float, end: float) -> float:
    """Mean steps of HA-SME out of `|x| < end`, from 0, watched at all times."""

    def local(x: Any) -> me.Coefficients:
        h, noise = curvature(x[0])[None, None], variance * jnp.eye(1)
        return me.coefficients(me.HA_SME, h, slope(x), noise, eta)

    return float(sde.exit_steps(local, (-end, end), 0.0, eta))


def cross_barrier(sizes: Sizes, track: base.Track) -> base.Table:
    """1 - cos x up to its maxima at +- pi, of height 2 and curvature 1 at both ends."""
    rows = []
    for eta in track(STEPS, "smooth barrier"):
        for height in sizes.heights:
            variance = 4 / (eta * height)  # height = 2 dL / (eta s^2)
            plug_in = float(escape.effective_temperature(1.0, variance, eta))
            steps = time_chain(lambda x, e=eta: x - e * jnp.sin(x), eta * variance**0.5, np.pi)
            rows.append(
                {
                    "eta": eta,
                    "2 dL / (eta s^2)": height,
                    "steps": steps,
                    "Kramers, continuous": np.pi / 2 * np.exp(height) / eta,
                    "Kramers, plug-in": np.pi / 2 * np.exp(2 / plug_in) / eta,
                    "HA-SME": time_model(jnp.cos, jnp.sin, eta, variance, np.pi),
                }
            )
    return rows


def leave_trap(sizes: Sizes, track: base.Track) -> base.Table:
    """x^2 / 2 up to a radius, in standard deviations at rest; the exit lies on a slope."""
    rows = []
    for eta in track(STEPS, "quadratic trap"):
        sd = float(escape.effective_temperature(1.0, 1.0, eta)) ** 0.5
        for ratio in sizes.radii:
            end = ratio * sd
            draws = float(escape.independent_exit_steps(1.0, 1.0, 1.0, ratio))
            rows.append(
                {
                    "eta": eta,
                    "radius / sd": ratio,
                    "steps": time_chain(lambda x, e=eta: (1 - e) * x, eta, end),
                    "independent draws": draws,
                    "HA-SME": time_model(jnp.ones_like, lambda x: x, eta, 1.0, end),
                }
            )
    return rows


def leave_saddle(sizes: Sizes, track: base.Track) -> base.Table:
    """From a saddle to a radius, in units of the noise of one step."""
    rows = []
    for growth in track(GROWTHS, "saddle"):
        for radius in sizes.far:
            sd = 1 / (2 * growth) ** 0.5  # of SME-1
            steps = time_chain(lambda x, g=growth: (1 + g) * x, 1.0, radius, 1000)
            formula = float(escape.saddle_exit_steps(growth, 1.0, 1.0, radius))
            sme = (np.log(radius / sd) + HALF) / growth
            rows.append((growth, radius, steps, formula, sme))
    names = ("eta g", "radius", "steps", "formula", "SME-1")
    return [dict(zip(names, values, strict=True)) for values in rows]


def fit_exponents(rows: base.Table) -> base.Table:
    """Slopes of log steps over the height, between the two largest heights."""
    found = []
    for eta in STEPS:
        last, end = [row for row in rows if row["eta"] == eta][-2:]
        run = end["2 dL / (eta s^2)"] - last["2 dL / (eta s^2)"]
        slope = np.log(end["steps"] / last["steps"]) / run
        found.append((eta, slope, EXPONENTS[eta], 1 - eta / 2))
    names = ("eta", "exponent", "reference", "plug-in temperature")
    return [dict(zip(names, values, strict=True)) for values in found]


def run(sizes: Sizes, seed: int, track: base.Track) -> base.Result:
    """The three exits; nothing in them is random."""
    barriers, traps = cross_barrier(sizes, track), leave_trap(sizes, track)
    saddles = leave_saddle(sizes, track)
    powers = fit_exponents(barriers)
    gaps = [abs(row["exponent"] - row["reference"]) for row in powers]
    nearer = [
        abs(row["exponent"] - 1) / abs(row["exponent"] - row["plug-in temperature"])
        for row in powers
    ]
    known = {2.5: 80.8, 3.5: 2150.0}  # reference: steps out of the trap at eta = 0.9
    from_reference = [
        abs(row["steps"] / known[row["radius / sd"]] - 1)
        for row in traps
        if row["eta"] == 0.9 and row["radius / sd"] in known
    ]
    late = [abs(row["formula"] - row["steps"]) for row in saddles]
    early = [row["HA-SME"] / row["steps"] for row in (*barriers, *traps)]
    ratio = [row["HA-SME"] / row["steps"] for row in barriers]
    of_trap = [row["HA-SME"] / row["steps"] for row in traps]
    under = max(row["steps"] / row["Kramers, plug-in"] for row in barriers)
    checks = [
        base.below("exponents at the barrier, distance from the reference", max(gaps), 0.01),
        base.below("exponents, distance from 1 over that from the plug-in", max(nearer), 1.0),
        base.below("trap at eta = 0.9, distance from the reference", max(from_reference), 0.001),
        base.below("saddle, distance of the formula in steps", max(late), 0.07),
        base.below("HA-SME over SGD, largest ratio of exit times", max(early), 1.0),
    ]
    findings = [
        "At a smooth barrier the exponent is nearly that of continuous time: "
        + ", ".join(f"{row['exponent']:.3f} at eta = {row['eta']:g}" for row in powers)
        + f". The temperature of the discrete chain in Kramers' formula is up to {under:.0f} times "
        "too short.",
        "Out of a quadratic trap at eta = 0.9 iterates are almost independent draws: "
        + ", ".join(
            f"{row['steps']:.4g} steps for {row['independent draws']:.4g}"
            for row in traps
            if row["eta"] == 0.9
        )
        + ".",
        f"Leaving a saddle takes the steps of the formula within {max(late):.2f}; SME-1 is early "
        f"by up to {max(row['steps'] / row['SME-1'] - 1 for row in saddles):.0%} of its own time.",
        "HA-SME, watched at all times, exits before SGD: after "
        f"{min(ratio):.2f} to {max(ratio):.2f} of its time over the barrier, "
        f"{min(of_trap):.2f} to {max(of_trap):.2f} out of the trap. Exact at steps is not exact "
        "between them.",
    ]
    tables = {
        "exponents": powers,
        "smooth barrier": barriers,
        "quadratic trap": traps,
        "saddle": saddles,
    }
    picture = draw(barriers, traps, saddles)
    return base.Result("Escape times of SGD", picture, tables, findings, checks)


def select_columns(rows: base.Table, key: str, where: float, *names: str) -> list[np.ndarray]:
    """Columns of the rows in which `key` has one value."""
    mine = [row for row in rows if row[key] == where]
    return [np.array([row[name] for row in mine]) for name in names]


def draw(barriers: base.Table, traps: base.Table, saddles: base.Table) -> Any:
    """Three exits, and how early HA-SME leaves."""
    figure, axes = base.figure(2, 2, 11.5, 8)
    (smooth, slope), (leave, early) = axes
    for eta, color in zip(STEPS, COLORS, strict=True):
        names = "2 dL / (eta s^2)", "steps", "Kramers, continuous", "Kramers, plug-in", "HA-SME"
        x, steps, past, plug, model = select_columns(barriers, "eta", eta, *names)
        smooth.plot(x, steps, "o", color=color, label=f"eta = {eta:g}")
        smooth.plot(x, past, "--", color=color)
        smooth.plot(x, plug, ":", color=color)
        early.plot(x, model / steps, "o-", color=color, label=f"barrier, eta = {eta:g}")
        x, steps, model = select_columns(traps, "eta", eta, "radius / sd", "steps", "HA-SME")
        slope.plot(x, steps, "o", color=color, label=f"eta = {eta:g}")
        slope.plot(x, model, "-.", color=color)
        early.plot(x**2, model / steps, "s:", color=color, label=f"trap, eta = {eta:g}")
    slope.plot(
        *select_columns(traps, "eta", 0.9, "radius / sd", "independent draws"),
        "k-",
        linewidth=1,
        label="independent draws",
    )
    for growth, color in zip(GROWTHS, COLORS, strict=True):
        x, steps, formula, sme = select_columns(
            saddles, "eta g", growth, "radius", "steps", "formula", "SME-1"
        )
        leave.plot(x, steps, "o", color=color, label=f"eta g = {growth:g}")
        leave.plot(x, formula, color=color, linewidth=1)
        leave.plot(x, sme, "--", color=color)
    for at, style, words in (
        (smooth, "--", "Kramers, T = eta s^2 / 2"),
        (smooth, ":", "Kramers, T = k Var(w)"),
        (slope, "-.", "HA-SME, watched at all times"),
        (leave, "-", "formula"),
        (leave, "--", "SME-1"),
    ):
        at.plot([], [], style, color="0.3", label=words)
    words = [
        ("over a smooth barrier, 1 - cos x", "height 2 dL / (eta s^2)", "mean steps", "log"),
        ("out of a quadratic trap", "radius / standard deviation", "mean steps", "log"),
        ("away from a saddle", "radius / noise of one step", "mean steps", "linear"),
        ("HA-SME against SGD", "height of the exit", "exit time / SGD's", "linear"),
    ]
    for at, (title, x, y, scale) in zip(axes.flat, words, strict=True):
        at.set(title=title, xlabel=x, ylabel=y, yscale=scale)
        at.legend(fontsize=8)
    leave.set_xscale("log")
    early.set_ylim(0, 1.15)
    early.legend(fontsize=7.5, ncols=3, loc="upper center")
    base.caption(
        figure,
        "Dots: exact mean first-passage times of the discrete chain, by quadrature. One dimension, "
        "curvature 1 at the minimum, Gaussian noise.\nRight below: height of the trap in units of "
        "its own temperature, (radius / sd)^2.",
    )
    return figure


if __name__ == "__main__":
    sys.exit(base.command("escape", __doc__, run, FULL, QUICK))

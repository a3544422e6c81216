r"""The influence route: products and single examples, for quadratic inner losses of any size.

Noise by :mod:`bilevel.noise.influence`, the law of long windows: above the truth for short ones;
its feedback by ``1 / (1 - eta / eta*)``, as ``p kappa o c <= eta / eta*``. Curvature extremes by
Lanczos. ``eta* >= 2 / ((1 - p) k_max + p max_i |H_i|)``, a certificate. What the start leaves is
bounded by the slowest mode with the norms of its parts; second moments forget it by
``1 - 2 eta k_min (1 - eta / eta*)`` per step or faster. Off quadratic losses the mean is off, too:
:mod:`bilevel.planning.mean_shift`, with one Hessian, up to 1024 params.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Problem
from bilevel.linear import CG, extremes, spectral_norm
from bilevel.noise import ExampleLoss, FlatProblem, influence, prediction
from bilevel.planning.analysis import Analysis, call_compiled
from bilevel.planning.approach import approach_solution
from bilevel.planning.mean_shift import MOST_PARAMS, MeanShift, measure_mean_shift
from bilevel.planning.powers import Pair, Powers
from bilevel.planning.refusals import (
    require_mean,
    require_near,
    require_separated,
    require_small_curved,
    require_solved,
    require_solved_linear,
)
from bilevel.solvers import minimise
from bilevel.utils import PyTree

_LANCZOS, _POWER = 80, 12


def analyse_by_influence(
    flat: FlatProblem, factors: dict[int | None, float], seed: int
) -> Analysis:
    """Return an analysis in O(n p) memory: p + 1 solves, two passes over the examples.

    Raises
    ------
    ValueError : a large inner loss that is not quadratic; a Hessian that is singular or indefinite,
        or that Lanczos and conjugate gradients cannot tell from a singular one.
    """
    random = np.random.default_rng(seed).standard_normal(flat.x.shape)
    found = jax.tree.map(np.asarray, call_compiled(partial(_measure, flat), (flat.x, random)))
    # Refuse before the p + 1 solves of the influences, which are the dear part.
    require_solved(float(found["decrease"]), float(found["value"]))
    sizes = len(flat.x), flat.count, len(flat.theta)
    quadratic = flat.problem.quadratic or float(found["nonlinearity"]) <= 1e-8
    require_small_curved(quadratic, MOST_PARAMS, *sizes)
    require_near(float(found["delay"]))
    low, high = found["extremes"]
    probed, size = found["probed"], float(np.abs(found["single_probes"]).max(initial=0.0))
    require_mean(np.mean(found["single_probes"], 0), probed, size + 1e-12)
    require_separated(float(low.value), float(low.error))
    at = flat.to_hyper(flat.theta), flat.to_params(found["x"])
    psi = influence.compute_influence(flat.problem, *at, flat.data, linear=CG(1e-10, 10_000))
    require_solved_linear(max(float(psi.residual), float(found["residual"])))
    here = replace(flat, x=jnp.asarray(found["x"]))
    shift = MeanShift(0 * found["exact"], 0.0) if quadratic else measure_mean_shift(here)
    variance = np.var(np.asarray(psi.values), axis=1)
    # Every bound is taken on its cautious side: the slowest mode slower, the steepest steeper.
    slowest, steepest = float(low.value - low.error), float(high.value + high.error)
    limits = {
        size: 2 / ((1 - factor) * steepest + factor * max(float(found["single"]), steepest))
        for size, factor in factors.items()
    }

    def predict(step_size: float, batch_size: int | None, reads: str) -> Bound:
        del reads  # it knows one chain, averaged
        share = step_size / limits[batch_size]
        noise = factors[batch_size] * variance / (1 - share)
        moved = MeanShift(
            step_size * factors[batch_size] * shift.bias,
            (step_size * factors[batch_size]) ** 0.5 * shift.nonlinearity,
        )
        bound = Bound(found["norms"], noise, slowest, step_size, share, moved)
        bound.earliest = int(np.ceil(float(found["delay"]) / step_size))
        return bound

    parts = float(np.linalg.norm(found["parts"]))
    trust, safe = prediction.trusted_share(quadratic), 1 / float(found["outset"].value)
    trusted = {size: min(trust * limit, safe) for size, limit in limits.items()}
    return Analysis(
        "influence",
        found["x"],
        found["exact"],
        parts,
        (slowest, steepest),
        limits,
        trusted,
        predict,
    )


class Bound:
    """The errors of all runs at one step size and batch size, from above."""

    earliest, period = 0, 1
    doubt = noise_doubt = 0.0

    def __init__(
        self,
        norms: np.ndarray,
        noise: np.ndarray,
        slowest: float,
        step_size: float,
        share: float,
        shift: MeanShift,
    ) -> None:
        """``norms`` ``|l| |D_j|``, ``|slope_j| |u|``, ``|l| |T_j u|``, and ``noise``: ``[p]``."""
        self.bias, self.nonlinearity = shift
        self.norms, self.noise, self.step_size = norms, noise, step_size
        self.noisy = bool(noise.any())
        self.mean = 1 - step_size * slowest
        self.powers = Powers(np.full((1, 1, 1), self.mean), np.ones((1, 1)))
        square = max(1 - 2 * step_size * slowest * (1 - share), self.mean**2)
        self.lag = (square / self.mean**2) ** 0.5

    def stationary_error(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bias to first order, 0 on quadratic losses, and variance, ``[p]``."""
        return self.bias, self.noise / window

    def product_share(self, window: int) -> float:
        """Return 0: by first order no product of noise is known."""
        return 0.0

    def transient(self, start: int, wait: int, window: int) -> np.ndarray:
        """Return an upper bound, ``[p]``."""
        own, slope, coupled = self.norms
        average = Pair(*(x / window for x in self.powers.sums(window).plain))
        f, F = self.powers.sums(wait + 1).power @ average
        left = (self.lag * self.mean) ** (start - self.earliest)
        bound = f.item() * own
        bound = bound + left * (f.item() * slope + self.step_size * F.item() * coupled)
        return bound * self.lag**wait

    left = transient


def _measure(flat: FlatProblem, at: tuple[Array, Array]) -> dict[str, PyTree]:
    (first, random), theta = at, flat.theta
    solved = minimise(Problem(flat.inner, flat.inner), theta, first, flat.data)
    x = solved.params
    here = FlatProblem(flat.problem, flat.data, x, theta, flat.to_params, flat.to_hyper)
    gradient, direct = jax.grad(flat.outer, (0, 1))(x, theta)

    outset = extremes(replace(flat, x=first).hvp, random, _LANCZOS)[1]
    ends = extremes(here.hvp, random, _LANCZOS)
    step = 1 / jnp.maximum(outset.value, ends[1].value)
    near, delay = approach_solution(
        lambda x: flat.gradient(x, theta), first, x, hvp=here.hvp, step=step
    )
    u = near - x

    # One hyperparameter at a time, so that no [p, n] array of tangents is kept.
    def one(t: Array) -> tuple[Array, ...]:
        still = jax.jvp(lambda theta: flat.gradient(x, theta), (theta,), (t,))[1]
        D = CG(1e-10, 10_000).solve(here.hvp, -still, jnp.zeros_like(x))
        slope = jax.jvp(jax.grad(flat.outer), (x, theta), (D.x, t))[1]
        along = partial(jax.jvp, flat.gradient)
        coupled = jax.jvp(lambda x: along((x, theta), (D.x, t))[1], (x,), (u,))[1]
        norms = map(jnp.linalg.norm, (D.x, slope, coupled))
        return D.x @ gradient + t @ direct, D.residual, *norms

    basis = jnp.eye(len(theta), dtype=theta.dtype)
    exact, residual, D, slope, coupled = jax.lax.map(one, basis)
    size, rows = jnp.linalg.norm(gradient), jnp.arange(flat.count)

    def probe(loss: ExampleLoss) -> Array:
        """Return slope and curvature along the random vector, of one example or of all."""
        along = partial(jax.jvp, lambda x: loss(x, theta))
        slope = lambda x: along((x,), (random,))[1]  # noqa: E731
        return jnp.stack(jax.jvp(slope, (x,), (random,)))

    def curvature(v: Array) -> Array:
        return jax.jvp(lambda x: flat.gradient(x, theta), (v,), (random,))[1]

    # On a quadratic loss a Hessian-vector product is the same everywhere, here and far away.
    change = jnp.linalg.norm(curvature(first + random) - curvature(x))
    return {
        "x": x,
        "decrease": solved.decrease,
        "value": flat.inner(x, theta, flat.data.inner),
        "nonlinearity": change / jnp.linalg.norm(curvature(x)),
        "exact": exact,
        "residual": jnp.max(residual),
        "extremes": ends,
        "outset": outset,
        "delay": delay,
        "single": jnp.max(flat.map_examples(partial(_find_steepest, x, theta, random), rows, 256)),
        "probed": probe(lambda x, theta: flat.inner(x, theta, flat.data.inner)),
        "single_probes": flat.map_examples(probe, rows, 256),
        "parts": size * D + jnp.linalg.norm(x) * slope,
        "norms": jnp.stack([size * D, jnp.linalg.norm(u) * slope, size * coupled]),
    }


def _find_steepest(x: Array, theta: Array, random: Array, loss: ExampleLoss) -> Array:
    """Return the largest curvature of one example, ``()``."""

    def hvp(v: Array) -> Array:
        return jax.jvp(lambda x: jax.grad(loss)(x, theta), (x,), (v,))[1]

    return spectral_norm(hvp, random, _POWER)

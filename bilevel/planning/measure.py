"""What a plan needs to know of a problem: measured once at its solution, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.minimise import minimise
from bilevel.noise import checks, limits, rules, stability
from bilevel.noise.coupled import Coupled
from bilevel.noise.per_example import Flat
from bilevel.planning import refusals
from bilevel.problem import Data, Problem

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the mean-square limit, where moments are exact
MOST_WORK, MOST_ENTRIES = 1e9, 2e7  # of the dense route: products per pass, stored numbers
_MOST_DESCENT = 10_000


@dataclass(frozen=True)
class Moments:
    """The second moments at rest at one batch size and step size, in the eigenbasis.

    ``xx [n, n]``, ``xd`` and ``dd`` ``[p, n, n]``; ``bent``: how far the mean settles from the
    solution over the spread around it, in the norm of the Hessian, 0 on a quadratic loss.
    """

    xx: np.ndarray
    xd: np.ndarray
    dd: np.ndarray
    bent: float

    def scaled(self, factor: float) -> "Moments":
        """At a step size ``factor`` times as large, to first order."""
        both = self.xx * factor, self.xd * factor, self.dd * factor
        return Moments(*both, self.bent * factor**0.5)


class Local(NamedTuple):
    r"""The problem at its solution, in the eigenbasis of the inner Hessian (NumPy, float64).

    The hypergradient is, to second order, ``h*_j + slope_j.u + l.E_j + u.bend_j.u / 2 +
    u.Q.E_j``, and its mean at rest is moved further by ``-(shift_j . E u u^T) / 2 - cubic . E u
    E_j^T`` (:mod:`bilevel.noise.bias`, by adjoints).

    Parameters
    ----------
    h : ``[n]``, eigenvalues; ``coupling`` ``T_j [p, n, n]``; ``derivative`` ``D* [p, n]``.
    gradient, hessian : ``l [n]``, ``Q [n, n]`` of the outer loss; ``slope [p, n]``.
    bend, shift : ``[p, n, n]``; ``cubic [n, n]``.
    spread : ``[n]``, variance over the examples of the curvature along each eigenvector.
    exact : ``[p]``, the hypergradient.
    """

    h: Any
    coupling: Any
    derivative: Any
    gradient: Any
    hessian: Any
    slope: Any
    bend: Any
    shift: Any
    cubic: Any
    spread: Any
    exact: Any


@dataclass(frozen=True)
class Measured:
    """``local`` at the solution ``x``; ``start [n]``, the deviation where the loss is quadratic.

    From params there, gradient descent needs ``delay`` (step size times steps). ``limits`` and
    ``moments`` by batch size (``None``: the full batch) and by share of the limit.
    """

    local: Local
    x: np.ndarray
    start: np.ndarray
    delay: float
    count: int
    first_curvature: float
    limits: dict[int | None, float]
    moments: dict[int | None, tuple[Moments, ...]]


def measure(flat: Flat, batch_sizes: Sequence[int | None], factors: Sequence[float]) -> Measured:
    """The dense route: two compiled programs, all second and some third derivatives.

    Raises
    ------
    ValueError : the inner problem is not solved by Newton's method, or its Hessian at the solution
        is singular or indefinite; gradient descent does not come near.
    """
    x = solve(flat)
    (local, H, process, vectors, whole) = _once(partial(_derivatives, flat), x)
    require_convex(H)
    start, delay, first = _once(partial(_approach, flat, H), x)
    refusals.require_near(float(delay))
    process = process.rotated(vectors)
    third = jnp.einsum("abc,ai,bj,ck->ijk", whole, vectors, vectors, vectors)
    limit, moments = _at_rest(process, third, jnp.asarray(factors))
    found = jax.tree.map(np.asarray, local)
    at = [
        tuple(Moments(*(np.asarray(y[i, k]) for y in moments[:3]), float(moments[3][i, k]))
              for k in range(len(SHARES)))
        for i in range(len(factors))
    ]  # fmt: skip
    return Measured(
        found,
        np.asarray(x),
        np.asarray(vectors.T @ start),
        float(delay),
        flat.count,
        float(first),
        dict(zip(batch_sizes, np.asarray(limit).tolist(), strict=True)),
        dict(zip(batch_sizes, at, strict=True)),
    )


def solve(flat: Flat) -> Array:
    """The minimiser of the inner loss, or a refusal."""
    problem = Problem(
        lambda x, theta, batch: flat.inner(x, theta, batch), lambda x, theta, batch: x[0]
    )
    found = minimise(problem, flat.theta, flat.x, flat.data)
    value = flat.inner(found.params, flat.theta, flat.data.inner)
    refusals.require_solved(float(found.decrease), float(value))
    return found.params


def require_convex(H: Array) -> None:
    """Refuse a Hessian without a strict minimum."""
    cure = (
        "Around such a point the iterates do not settle, and no theory of their noise holds: add "
        "a penalty, drop dependent features, or measure the noise with bl.Replicated."
    )
    checks.positive_definite("bl.plan", "the inner Hessian at the solution", (H + H.T) / 2, cure)


def _once(fn: Any, x: Array) -> Any:
    """``fn(x)`` as one compiled program: op by op, each of its products would compile alone."""
    return jax.tree.map(lambda leaf: leaf[0], jax.lax.map(fn, x[None]))


def _derivatives(flat: Flat, x: Array) -> Any:
    """``(Local, H, process, eigenvectors, third derivatives)``."""
    theta, data = flat.theta, flat.data
    at = Flat(flat.problem, data, x, theta, flat.to_params, flat.to_hyper)
    params, hyper = flat.to_params(x), flat.to_hyper(theta)
    process = Coupled.of(flat.problem, hyper, params, data, batch_size=1)
    H, D = jax.jacfwd(at.gradient)(x, theta), process.derivative
    h, U = jnp.linalg.eigh((H + H.T) / 2)
    basis = jnp.eye(len(theta), dtype=theta.dtype)
    outer = jax.grad(at.outer, (0, 1))
    gradient, direct = outer(x, theta)
    v = jnp.linalg.solve(H, gradient)
    T = jnp.mean(process.couplings, 1)

    def hypergradient(D: Array, t: Array, x: Array) -> Array:
        in_x, in_theta = outer(x, theta)
        return D @ in_x + t @ in_theta

    def one(parts: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        D, t, T = parts
        slope = jax.grad(hypergradient, argnums=2)(D, t, x)
        bend = jax.jacfwd(jax.grad(hypergradient, argnums=2), argnums=2)(D, t, x)
        a = jnp.linalg.solve(H, slope - T.T @ v)

        def adjoint(x: Array) -> Array:
            """``a . grad f + v . F_j``: how the joint gradient looks along the adjoint."""
            gradient, moved = jax.jvp(at.gradient, (x, theta), (D, t))
            return a @ gradient + v @ moved

        return slope, bend, jax.jacfwd(jax.grad(adjoint))(x)

    slope, bend, shift = jax.lax.map(one, (D, basis, T))
    third = jax.jacfwd(jax.jacfwd(at.gradient))(x, theta)
    Q = jax.jacfwd(jax.grad(at.outer))(x, theta)
    along = jnp.einsum("ai,mab,bi->mi", U, process.matrices, U)
    local = Local(
        h, U.T @ T @ U, D @ U, U.T @ gradient, U.T @ Q @ U, slope @ U, U.T @ bend @ U,
        U.T @ shift @ U, U.T @ jnp.tensordot(v, third, 1) @ U,
        jnp.var(along, 0), D @ gradient + direct,
    )  # fmt: skip
    return local, H, process, U, third


def _approach(flat: Flat, H: Array, x: Array) -> tuple[Array, Array, Array]:
    """``(u, delay, L)``: gradient descent from params until its gradient is about ``H u``."""
    theta = flat.theta
    first = jnp.linalg.eigvalsh(jax.jacfwd(flat.gradient)(flat.x, theta))[-1]
    step = 1 / jnp.maximum(first, jnp.linalg.eigvalsh(H)[-1])

    def far(carry: Any) -> Array:
        at, k = carry
        linear = H @ (at - x)
        gap = flat.gradient(at, theta) - linear
        return (jnp.sum(gap**2) > 0.04 * jnp.sum(linear**2)) & (k < _MOST_DESCENT)

    def descend(carry: Any) -> Any:
        return carry[0] - step * flat.gradient(carry[0], theta), carry[1] + 1

    at, k = jax.lax.while_loop(far, descend, (flat.x, jnp.zeros((), jnp.int32)))
    delay = jnp.where(k < _MOST_DESCENT, k * step, jnp.inf)
    return at - x, delay, first


def _at_rest(process: Coupled, third: Array, factors: Array) -> tuple[Array, Any]:
    """The mean-square limits ``[B]``, and moments and bentness at every share of them."""
    h = jnp.diagonal(process.curvature)

    def each(factor: Array) -> Any:
        here = Coupled(
            process.matrices, process.couplings, process.gradients, process.derivatives,
            process.derivative, factor,
        )  # fmt: skip
        found = stability.step_limit(here)
        limit = found.value - found.error

        def at(share: Array) -> Any:
            moments = limits.stationary(here, rules.sgd(share * limit))
            xx = moments.xx[0, :, 0]
            settled = jnp.einsum("abc,bc->a", third, xx) / 2
            size = jnp.sum(settled**2 / h) / jnp.maximum(jnp.sum(h * jnp.diagonal(xx)), 1e-300)
            return xx, moments.xd[:, 0, :, 0], moments.dd[:, 0, :, 0], jnp.sqrt(size)

        return limit, jax.lax.map(at, jnp.asarray(SHARES))

    return jax.lax.map(each, factors)

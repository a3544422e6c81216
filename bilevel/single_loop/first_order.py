"""Methods on all data without second derivatives: BOME, a penalty, and PZOBO, differences."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    Evidence,
    InnerState,
    Problem,
    as_setting,
    evaluate,
    init_inner_state,
)
from bilevel.estimators import check_minimiser, full_gradient, inner_residual
from bilevel.single_loop.rates import StepSize
from bilevel.spaces import free_coordinates, in_natural_units, move_coordinates
from bilevel.utils import (
    PyTree,
    axpy,
    register_node,
    require_plain,
    require_positive,
    require_positive_int,
    vdot,
)


def normalise_fields(owner: object, rates: tuple[str, ...], counts: tuple[str, ...]) -> None:
    """Normalise step sizes; validate counts: positive, or ``None`` for a later choice."""
    name = type(owner).__name__
    for field in rates:
        object.__setattr__(owner, field, as_setting(name, field, getattr(owner, field)))
    for field in counts:
        if (count := getattr(owner, field)) is not None:
            require_positive_int(name, field, count)


def check_call(name: str, problem: Problem, hyper: PyTree, lower: InnerState, data: Data) -> Array:
    """Return the number of the call, after the checks that all share."""
    require_plain(name, problem)
    check_minimiser(name, problem, hyper, lower.params, data)
    return jnp.zeros((), jnp.int32) if lower.memory is None else lower.memory["count"]


def _descent(
    problem: Problem, w: PyTree, hyper: PyTree, data: Data, rate: float | Array, k: int
) -> PyTree:
    """Take ``k`` gradient steps on all data."""

    def step(w: PyTree, _: None) -> tuple[PyTree, None]:
        return axpy(-rate, jax.grad(problem.inner)(w, hyper, data.inner), w), None

    return jax.lax.scan(step, w, length=k)[0]


@dataclass(frozen=True)
class BOME:
    r"""A step along the outer gradient, turned so that the lower level is approached as well.

        y = ``inner_steps`` gradient steps from w,   q = grad [g(w, lam) - g(y, lam)]  (y held)
        (w, lam) moves along  grad f + max(eta |q|^2 - <grad f, q>, 0) / |q|^2  q

    On all data. Ye, Liu, Wright, Stone, Liu, NeurIPS 2022.

    Parameters
    ----------
    step_size : of w and of y; a number or ``fn(count)``.
    inner_steps, eta : as above.
    """

    step_size: StepSize
    inner_steps: int = 10
    eta: float | Array = 0.5

    def __post_init__(self) -> None:
        """Normalise the step and validate the settings."""
        normalise_fields(self, ("step_size",), ("inner_steps",))

    def init(self, params: PyTree, data: Data) -> InnerState:
        """Return the start point."""
        del data
        return init_inner_state(params, ())

    def step(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Move the params, return the direction of the hyperparameters at the same point."""
        del key
        count = check_call("BOME", problem, hyper, lower, data)
        w, rate = lower.params, evaluate(self.step_size, count, hyper)
        both = (0, 1)
        y = _descent(problem, w, hyper, data, rate, self.inner_steps)
        value, f = jax.value_and_grad(problem.outer, both)(w, hyper, data.outer)
        q_w, at_w = jax.grad(problem.inner, both)(w, hyper, data.inner)
        at_y = jax.grad(problem.inner, 1)(y, hyper, data.inner)
        q = q_w, jax.tree.map(jnp.subtract, at_w, at_y)
        size = vdot(q, q)
        wanted = jnp.maximum(self.eta * size - vdot(f, q), 0)
        turn = jnp.where(size > 0, wanted / jnp.where(size > 0, size, 1), 0)
        d_w, d_lam = axpy(turn, q, f)
        end = axpy(-rate, d_w, w)
        gradient = full_gradient(problem, hyper, end, data)
        residual, reference = inner_residual(problem, hyper, w, gradient, data, lower.reference)
        counts = Counts.of(gradients=self.inner_steps + 3)
        estimate = Estimate(value, d_lam, Evidence(residual, counts=counts))
        return estimate, InnerState(end, (), {"count": count + 1}, reference)


@dataclass(frozen=True)
class PZOBO:
    r"""The derivative of the inner solution along random directions, by finite differences.

        w' = K gradient steps from w at lam,   w_j = the same at lam + mu u_j,   u_j ~ N(0, I)
        grad = mean_j <(w_j - w') / mu, grad_w f> u_j + grad_lambda f

    On all data. Sow, Ji, Liang, NeurIPS 2022. Unbiased up to O(mu) for the K steps that were made,
    with a variance that grows with the number of hyperparameters.

    Parameters
    ----------
    step_size, inner_steps : of the inner steps, K of them.
    pairs, mu : number of directions, and the size of the perturbation, with ``problem.space`` in
        free coordinates.
    """

    step_size: StepSize
    inner_steps: int = 10
    pairs: int = 10
    mu: float | Array = 0.1

    def __post_init__(self) -> None:
        """Normalise the step and validate the settings."""
        normalise_fields(self, ("step_size",), ("inner_steps", "pairs"))
        require_positive("PZOBO", "mu", self.mu)

    def init(self, params: PyTree, data: Data) -> InnerState:
        """Return the start point."""
        del data
        return init_inner_state(params, ())

    def step(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Solve at ``hyper`` and beside it; direction j is drawn with the j-th of split keys."""
        count = check_call("PZOBO", problem, hyper, lower, data)
        w, rate = lower.params, evaluate(self.step_size, count, hyper)

        def solve(hyper: PyTree) -> PyTree:
            return _descent(problem, w, hyper, data, rate, self.inner_steps)

        # One solve at hyper, one beside it for each direction.
        end, free = solve(hyper), free_coordinates(problem.space, hyper)
        value, (f_w, f_lam) = jax.value_and_grad(problem.outer, (0, 1))(end, hyper, data.outer)

        def along(key: Array) -> PyTree:
            leaves, tree = jax.tree.flatten(free)
            keys = jax.random.split(key, len(leaves))
            pairs = zip(keys, leaves, strict=True)
            u = tree.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in pairs])
            beside = solve(move_coordinates(problem.space, free, self.mu, u, hyper))
            slope = vdot(jax.tree.map(jnp.subtract, beside, end), f_w) / self.mu
            along_u = jax.tree.map(lambda x: (slope * x).astype(x.dtype), u)
            return in_natural_units(problem.space, free, along_u)[0]

        each = jax.vmap(along)(jax.random.split(key, self.pairs))
        grad = jax.tree.map(lambda f, x: f + jnp.mean(x, axis=0), f_lam, each)
        error = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / self.pairs**0.5, each)
        gradient = full_gradient(problem, hyper, end, data)
        residual, reference = inner_residual(problem, hyper, w, gradient, data, lower.reference)
        counts = Counts.of(gradients=self.inner_steps * (1 + self.pairs) + 1)
        spread = error if self.pairs > 1 else None
        evidence = Evidence(residual, standard_error=spread, counts=counts)
        return Estimate(value, grad, evidence), InnerState(end, (), {"count": count + 1}, reference)


for _method, _leaves, _static in (
    (BOME, ["step_size", "eta"], ["inner_steps"]),
    (PZOBO, ["step_size", "mu"], ["inner_steps", "pairs"]),
):
    register_node(_method, data_fields=_leaves, meta_fields=_static)

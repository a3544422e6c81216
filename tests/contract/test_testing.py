"""The test tools themselves: the oracle is right, and every law notices what it is for."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case, conformance, dense_hypergradient, dense_solution, logistic, ridge
from bilevel.utils import register_node


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_oracle_is_the_closed_form(seed: int) -> None:
    case = ridge(seed)
    assert case.exact is not None
    expected, slope = case.exact(case.hyper)
    value, grad = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(grad, slope, rtol=1e-12, atol=1e-15)


def test_the_oracle_solves_what_is_not_quadratic() -> None:
    # min_w exp(w) - h w is at w = log h, from any start; outer w^2 / 2.
    problem = bl.Problem(lambda w, h, x: jnp.exp(w) - h * w + 0 * x[0], lambda w, h, x: w**2 / 2)
    data = bl.Data(inner=np.zeros(1), outer=np.zeros(1))
    for start in (-3.0, 6.0):
        value, grad = dense_hypergradient(problem, 5.0, start, data)
        assert value == pytest.approx(np.log(5) ** 2 / 2, rel=1e-14)
        assert float(grad) == pytest.approx(np.log(5) / 5, rel=1e-14)
        assert float(dense_solution(problem, 5.0, start, data)) == pytest.approx(np.log(5))


def test_the_oracle_leaves_the_precision_alone() -> None:
    case = logistic(seed=0)
    dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    assert jnp.zeros(1).dtype == jnp.float32


ONE = bl.Data(inner=np.ones(1), outer=np.ones(1))
REFUSED: list[tuple[Callable[..., Any], Any, str]] = [
    (lambda w, h, x: jnp.sum(w**2) * h, np.zeros(3001), "at most 3000 inner parameters, got 3001"),
    (lambda w, h, x: (w[0] + w[1]) ** 2 + h * w[0], np.zeros(2), "found no inner minimum"),
    (lambda w, h, x: w[0] ** 2 * h + 0 * w[1], np.ones(2), "singular or indefinite"),
    (lambda w, h, x: h * (w[0] ** 2 - w[1] ** 2), np.zeros(2), "singular or indefinite"),
    (lambda w, h, x: h * jnp.log(w[0]), -np.ones(1), "found no inner minimum"),
]


@pytest.mark.parametrize(("inner", "params", "message"), REFUSED)
def test_the_oracle_refuses(inner: Any, params: Any, message: str) -> None:
    problem = bl.Problem(inner, lambda w, h, x: jnp.sum(w))
    with pytest.raises(ValueError, match=message):
        dense_hypergradient(problem, 1.0, params, ONE)


@pytest.mark.parametrize("part", ["start", "prox"])
def test_the_oracle_refuses_more_than_a_smooth_loss(part: str) -> None:
    part_of_it: Any = {part: lambda *args: args[0]}
    problem = bl.Problem(lambda w, h, x: w**2, lambda w, h, x: w, **part_of_it)
    with pytest.raises(ValueError, match=f"problem.{part}"):
        dense_hypergradient(problem, 1.0, 1.0, ONE)


@dataclass(frozen=True)
class Flawed:
    """Reverse mode with one thing wrong."""

    solver: Any
    steps: int
    flaw: str

    def init(self, params: Any, data: bl.Data) -> bl.InnerState:
        return bl.Reverse(self.solver, self.steps).init(params, data)

    def step(
        self, problem: bl.Problem, hyper: Any, lower: bl.InnerState, data: bl.Data, key: Any
    ) -> tuple[bl.Estimate, bl.InnerState]:
        key = jax.random.key(7) if self.flaw == "key" else key
        solver = Counting(self.solver) if self.flaw == "counter" else self.solver
        steps = self.steps + (self.flaw == "steps")
        estimate, after = bl.Reverse(solver, steps).step(problem, hyper, lower, data, key)
        grad, evidence = estimate.grad, estimate.evidence
        if self.flaw == "gradient":
            grad = jax.tree.map(lambda g: 1.001 * g, grad)
        if self.flaw == "shape":
            grad = jax.tree.map(lambda g: g[None], grad)
        if self.flaw == "residual":
            evidence = dataclasses.replace(evidence, inner_residual=2 * evidence.inner_residual)
        return bl.Estimate(estimate.value, grad, evidence), after

    def __repr__(self) -> str:
        return "Flawed()" if self.flaw == "repr" else f"Flawed({self.solver}, {self.steps})"


register_node(Flawed, ["solver"], ["steps", "flaw"])


@dataclass(frozen=True)
class Counting:
    """A solver that counts its steps in Python, which a `lax.scan` calls once."""

    solver: Any
    calls: list = field(default_factory=list)

    def init(self, params: Any, data: Any) -> Any:
        return self.solver.init(params, data)

    def step(self, loss: Any, params: Any, hyper: Any, data: Any, key: Any, state: Any) -> Any:
        self.calls.append(None)
        moved, state = self.solver.step(loss, params, hyper, data, key, state)
        halved = jax.tree.map(lambda a, b: a + (b - a) / len(self.calls), params, moved)
        return halved, state


@dataclass(frozen=True)
class Blind:
    """A hypergradient by autodiff of `bl.solve`, silent about what it cannot see."""

    solver: Any
    steps: int

    def init(self, params: Any, data: bl.Data) -> bl.InnerState:
        return bl.Reverse(self.solver, self.steps).init(params, data)

    def step(
        self, problem: bl.Problem, hyper: Any, lower: bl.InnerState, data: bl.Data, key: Any
    ) -> tuple[bl.Estimate, bl.InnerState]:
        def value(hyper: Any) -> Any:
            args = (problem, self.solver, hyper, lower.params, data, key)
            return problem.outer(bl.solve(*args, steps=self.steps), hyper, data.outer)

        return bl.Estimate(*jax.value_and_grad(value)(hyper), bl.Evidence()), lower


# All static: every new step size is a new program.
jax.tree_util.register_static(Blind)


def flawed(flaw: str) -> Callable[[Any, int], Any]:
    return lambda solver, steps: Flawed(solver, steps, flaw)


CAUGHT = [
    (conformance.equals_dense_oracle, flawed("gradient"), "grad"),
    (conformance.equals_finite_differences, flawed("gradient"), "along"),
    (conformance.converges_at_its_rate, flawed("gradient"), "the error fell from"),
    (conformance.equals_its_python_loop, flawed("counter"), "the Python loop"),
    (conformance.takes_one_step_but_not_none, flawed("steps"), "params"),
    (conformance.shards_over_examples, bl.Reverse, "only one device"),
    (conformance.keeps_structure, flawed("shape"), "grad is"),
    (conformance.repeats_with_its_key, flawed("key"), "the key does not reach"),
    (conformance.reports_evidence, flawed("residual"), "Not equal"),
    (conformance.shows_its_settings, flawed("repr"), "do not show"),
    (conformance.compiles_once, Blind, "traced the inner loss"),
    (conformance.refuses_what_it_cannot_see, Blind, "was not refused"),
]


@pytest.mark.parametrize(("law", "factory", "message"), CAUGHT)
def test_the_law_notices(law: Callable[[Any, Case], None], factory: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        law(factory, ridge(seed=0))

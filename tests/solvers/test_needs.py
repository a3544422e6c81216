"""A solver that does not fit its problem, its estimator or its data says what is missing."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

import bilevel as bl
from tests.solvers.cases import SOLVERS, make, soft_threshold


def attempt(solver: Any, name: str, problem: bl.Problem | None = None) -> Any:
    case = make(name)
    return bl.hypergradient(
        problem or case.problem,
        bl.Implicit(solver, steps=2),
        case.hyper,
        case.params,
        case.data,
        jax.random.key(0),
    )


def run(solver: Any, name: str, steps: int) -> Any:
    case, key = make(name), jax.random.key(0)
    return bl.solve(case.problem, solver, case.hyper, case.params, case.data, key, steps=steps)


@pytest.mark.parametrize("solver", ["ProximalGradient", "FISTA"])
def test_prox_is_missing(solver: str) -> None:
    with pytest.raises(ValueError, match=f"`{solver}` needs Problem.prox; this problem has none"):
        attempt(SOLVERS[solver][0](1.0), "ridge")


@pytest.mark.parametrize("solver", ["GradientDescent", "SGD", "Optax", "LBFGS", "Newton"])
def test_prox_would_be_ignored(solver: str) -> None:
    with pytest.raises(ValueError, match=f"`{solver}` would ignore Problem.prox"):
        attempt(SOLVERS[solver][0](1.0), "lasso")
    with pytest.raises(ValueError, match=f"`{solver}` would ignore Problem.prox"):
        run(SOLVERS[solver][0](1.0), "lasso", steps=1)


def test_quadratic_is_missing() -> None:
    with pytest.raises(ValueError, match=r"`Direct` needs Problem\(quadratic=True\)"):
        attempt(bl.Direct(), "logistic")
    inner = make("ridge").problem.inner
    both = bl.Problem(inner, inner, prox=soft_threshold, quadratic=True)
    with pytest.raises(ValueError, match=r"`Direct` has no closed form for Problem\.prox"):
        attempt(bl.Direct(), "ridge", both)


def optax_lbfgs(L: float) -> Any:
    return bl.Optax(optax.chain(optax.clip(1e6), optax.lbfgs()))


@pytest.mark.parametrize("estimator", [bl.Forward, bl.Reverse])
@pytest.mark.parametrize(
    ("factory", "name", "why"),
    [
        (SOLVERS["LBFGS"][0], "ridge", "of LBFGS: its line search stops by comparing numbers"),
        (optax_lbfgs, "ridge", "of Optax: its line search stops by comparing numbers"),
        (SOLVERS["External"][0], "lasso", "of External: it runs outside JAX"),
    ],
)
def test_steps_cannot_be_differentiated(
    estimator: Any, factory: Callable[[float], Any], name: str, why: str
) -> None:
    case = make(name)
    sentence = f"{estimator.__name__} cannot differentiate the steps {why}.*Use Implicit"
    with pytest.raises(ValueError, match=sentence):
        bl.hypergradient(
            case.problem,
            estimator(factory(1.0), 5),
            case.hyper,
            case.params,
            case.data,
            jax.random.key(0),
        )


def test_settings() -> None:
    for name in ("ProximalGradient", "FISTA", "SVRG", "SAGA"):
        with pytest.raises(ValueError, match=f"{name}: step_size must be a positive finite number"):
            getattr(bl, name)(step_size=-0.1)
    with pytest.raises(ValueError, match="SVRG: period must be at least 1, got 0"):
        bl.SVRG(step_size=0.1, period=0)
    with pytest.raises(ValueError, match="LBFGS: memory must be at least 1, got 0"):
        bl.LBFGS(memory=0)
    with pytest.raises(TypeError, match="External: fn must be a function"):
        bl.External(3)  # pyright: ignore[reportArgumentType]
    for name in ("SVRG", "SAGA"):
        with pytest.raises(ValueError, match="sampling must be one of"):
            getattr(bl, name)(step_size=0.1, sampling="shuffle")
        with pytest.raises(ValueError, match="batch_size=99 is larger than the number of inner"):
            attempt(getattr(bl, name)(step_size=0.1, batch_size=99), "ridge")


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda w, h, data: w[1:], r"float.*\[3\].*must match"),
        (lambda w, h, data: (w, w), "what External.fn returned has structure"),
    ],
)
def test_external_returns_something_else(fn: Any, message: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(attempt(bl.External(fn), "ridge"))


def test_an_own_solver_declares_that_it_applies_the_prox() -> None:
    class Own:
        def init(self, params: Any, data: Any) -> tuple[()]:
            return ()

        def step(self, loss: Any, params: Any, hyper: Any, data: Any, key: Any, state: Any) -> Any:
            moved = params - 0.3 * jax.grad(loss)(params, hyper, data)
            return loss.prox(moved, hyper, 0.3), state

    class Declared(Own):
        def check(self, problem: bl.Problem) -> None:
            assert problem.prox is not None

    with pytest.raises(ValueError, match=r"Own` would ignore Problem\.prox"):
        run(Own(), "lasso", steps=1)
    np.testing.assert_allclose(
        run(Declared(), "lasso", steps=400), make("lasso").solution, atol=1e-5
    )

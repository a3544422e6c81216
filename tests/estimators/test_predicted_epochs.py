"""Predicted over shuffled epochs: its bias against the mean over all orders, and many runs."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.noise import linearised, rules
from tests.noise.test_shuffled import maps_of_orders, stationary

pytestmark = pytest.mark.usefixtures("x64")


def ridge(n: int, seed: int, heavy: bool) -> bl.testing.Case:
    """Two penalties of two features, n rows, and a quadratic outer loss that reads hyper too."""
    rng = np.random.default_rng(seed)
    X = rng.standard_t(3, (n, 2)) if heavy else rng.normal(size=(n, 2))
    V, y, c = rng.normal(size=(8, 2)), rng.normal(size=n), rng.normal(size=8)

    def inner(w: Any, hyper: Any, batch: Any) -> Any:
        residual = batch[0] @ w - batch[1]
        return jnp.mean(residual**2) / 2 + jnp.sum(jnp.exp(hyper) * w**2) / 2

    def outer(w: Any, hyper: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) + 0.1 * jnp.sum(hyper**2)

    data = bl.Data(inner=(X, y), outer=(V, c))
    problem, hyper = bl.Problem(inner, outer), np.log([0.3, 0.1])
    return bl.testing.Case("ridge", problem, hyper, np.zeros(2), data, step_size=0.1, steps=1000)


def exact_mean(case: Any, rule: Any, batch: int, implicit: bool) -> np.ndarray:
    """The mean of the hypergradient read at the average of one epoch, over all orders."""
    linearise = jax.jit(partial(linearised.linearise, case.problem, batch_size=batch))
    here = linearise(case.hyper, case.params, case.data)
    at = jnp.concatenate([here.solution, here.derivative.ravel()])
    maps, d = maps_of_orders(here.process, rule, batch), len(at)
    whole = maps.mean(1)
    second = np.einsum("oab,bc,odc->ad", whole, stationary(maps), whole) / len(maps)
    mean = second[:d, -1]
    covariance = second[:d, :d] - np.outer(mean, mean)
    inner, outer = case.problem.inner, case.problem.outer

    def read(z: Any) -> Any:
        in_x, in_theta = jax.grad(outer, (0, 1))(z[:2], case.hyper, case.data.outer)
        gradient = jax.grad(inner)
        H, mixed = jax.jacfwd(gradient, (0, 1))(z[:2], case.hyper, case.data.inner)
        D = -jnp.linalg.solve(H, mixed).T if implicit else z[2:].reshape(2, 2)
        return D @ in_x + in_theta

    def off(mean: Any, covariance: Any) -> Any:
        # A polynomial of second degree in z, so that this is no approximation.
        spread = jnp.einsum("pab,ab->p", jax.hessian(read)(at), covariance) / 2
        return read(at + mean) + spread - read(at)

    return jax.jit(off)(mean, covariance)


CASES = [(4, 1, False), (4, 2, True), (5, 1, True), (6, 1, False), (6, 2, True), (6, 3, False)]
VARIANTS = [(*case, False, None) for case in CASES]
VARIANTS += [(6, 2, True, True, None), (6, 3, False, False, 0.5)]


@pytest.mark.parametrize(
    ("n", "batch", "heavy", "implicit", "momentum"),
    [v if v[:2] == (4, 2) else pytest.param(*v, marks=pytest.mark.extended) for v in VARIANTS],
)
def test_bias_is_that_of_all_orders_to_first_order(
    n: int, batch: int, heavy: bool, implicit: bool, momentum: float | None
) -> None:
    case = ridge(n, seed=10 * n + batch, heavy=heavy)
    kind, wrong = bl.Implicit if implicit else bl.Forward, []

    @jax.jit
    def predict(rate: Any) -> Any:
        solver = bl.SGD(rate, batch, momentum, sampling="epoch")
        estimator = bl.Predicted(kind(solver, steps=4 * n // batch, average=n // batch))
        theory = estimator.theory(case.problem, case.hyper, case.params, case.data)
        assert theory.standard_error is None
        return theory.bias

    largest = np.max(np.sum(case.data.inner[0] ** 2, 1) + 0.3)
    for rate in np.array([0.02, 0.01]) / largest * (1 - (momentum or 0)):
        exact = exact_mean(case, rules.sgd(rate, momentum), batch, implicit)
        wrong.append(np.linalg.norm(predict(rate) - exact) / np.linalg.norm(exact))
    assert wrong[0] < 0.1
    assert wrong[1] == pytest.approx(wrong[0] / 2, rel=0.15)  # what is left out is of next order


@pytest.mark.extended
@pytest.mark.parametrize("momentum", [None, 0.6])
def test_bias_off_a_quadratic_is_that_of_many_runs(momentum: float | None) -> None:
    """Logistic regression, 26 rows in batches of 2; the theory is right to O(step size)."""
    case, runs = bl.testing.logistic(seed=0), 4000
    solver = bl.SGD(0.3 if momentum is None else 0.1, 2, momentum, sampling="epoch")
    one = bl.Forward(solver, steps=260, average=130)
    arguments = (case.hyper, case.params, case.data, jax.random.key(0))
    found = bl.hypergradient(case.problem, bl.Predicted(one), *arguments)[0].evidence.bias
    many = bl.hypergradient(case.problem, bl.Replicated(one, runs), *arguments)[0]
    _, exact = bl.testing.dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    measured, error = float(many.grad - exact), float(many.evidence.standard_error)
    assert abs(measured) > 10 * error  # 0 would not do
    assert abs(float(found) - measured) < 0.25 * abs(measured) + 4 * error


def test_evidence_says_what_is_known_and_what_is_not() -> None:
    case = ridge(6, 0, heavy=False)
    one = bl.Predicted(bl.Forward(bl.SGD(0.05, 2, sampling="epoch"), steps=60, average=30))
    arguments = (case.problem, one, case.hyper, case.params, case.data, jax.random.key(0))
    estimate = bl.hypergradient(*arguments)[0]
    assert estimate.unknown == ("noise of the inner solver",)
    assert estimate.evidence.bias.shape == (2,)
    assert math.isfinite(estimate.relative_error)


@pytest.mark.extended
def test_beyond_the_limit_there_is_no_bias() -> None:
    case = ridge(6, 0, heavy=False)
    beyond = bl.Predicted(bl.Forward(bl.SGD(3.0, 2, sampling="epoch"), steps=6, average=3))
    assert np.isinf(beyond.theory(case.problem, case.hyper, case.params, case.data).bias).all()


@pytest.mark.parametrize(
    ("batch", "steps", "average", "match"),
    [
        (2, 60, 31, "multiples of 3"),
        (2, 61, 30, "multiples of 3"),
        (2, 60, 0, "average of whole epochs"),
        (4, 60, 30, "divides their number"),
        (6, 60, 30, "two or more whole batches"),
    ],
)
def test_refuses_what_is_no_average_of_whole_epochs(
    batch: int, steps: int, average: int, match: str
) -> None:
    case = ridge(6, 0, heavy=False)
    solver = bl.SGD(0.05, batch, sampling="epoch")
    one = bl.Predicted(bl.Forward(solver, steps=steps, average=average))
    with pytest.raises(ValueError, match=match):
        one.theory(case.problem, case.hyper, case.params, case.data)

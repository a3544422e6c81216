"""A number that is not finite is named as what it is, and where it arose; so are JAX's refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl

KEY = jax.random.key(0)
GD = bl.GradientDescent(0.3)
ONE = bl.Data(inner=jnp.ones(2), outer=jnp.zeros(1))
H, W = jnp.array(0.5), jnp.zeros(2)


def quadratic(w: Any, h: Any, x: Any) -> Any:
    return jnp.sum((w - jnp.mean(x)) ** 2) / 2 + h * jnp.sum(w**2) / 2


def square(w: Any, h: Any, x: Any) -> Any:
    return jnp.sum(w**2) / 2


def norm_squared(w: Any, h: Any, x: Any) -> Any:
    """Its gradient at 0 is 0, and JAX's is NaN."""
    return jnp.sum((w - jnp.mean(x)) ** 2) / 2 + h * jnp.linalg.norm(w) ** 2 / 2


def dead_column(w: Any, h: Any, x: Any) -> Any:
    """The second entry of the gradient is exactly 0 in every step."""
    return (w[0] - jnp.mean(x)) ** 2 / 2 + h * jnp.sum(w**2) / 2


def rough(w: Any, h: Any, x: Any) -> Any:
    """Differentiable once at 0, where ``|w|^1.5`` has no second derivative."""
    a = jnp.where(w < 0, -w, w)
    return h * jnp.sum(a**1.5) + jnp.mean(x) * jnp.sum(w)


def unbounded(w: Any, h: Any, x: Any) -> Any:
    return jnp.mean(x) * jnp.log(jnp.sum(w)) * h


# A root of 0 that no gradient moves.
ROOT = bl.Optax(
    optax.stateless(lambda g, w: jax.tree.map(lambda x: -0.1 * x + jnp.sqrt(0 * jnp.sum(x)), g))
)
CASES: dict[str, tuple[Any, Any, Any, str]] = {
    "inner gradient, Reverse": (norm_squared, square, bl.Reverse(GD, 3), "gradient of the inner"),
    "inner gradient, Newton": (
        norm_squared,
        square,
        bl.Implicit(bl.Newton(), 3),
        "gradient of the inner loss is not finite where the inner solver starts",
    ),
    "inner gradient, Auto": (norm_squared, square, bl.Auto(), "gradient of the inner loss"),
    "inner loss": (unbounded, square, bl.Reverse(GD, 3), "the inner loss itself is -inf"),
    "second derivative": (rough, square, bl.Reverse(GD, 1), "a second derivative of the inner"),
    "step, Reverse": (quadratic, square, bl.Reverse(ROOT, 3), "step 0 of Optax.*Roots"),
    "step, Forward": (quadratic, square, bl.Forward(ROOT, 3), "step 0 of Optax.*Roots"),
    "outer loss": (
        quadratic,
        lambda w, h, x: jnp.log(-jnp.sum(w)),
        bl.Implicit(GD, 20),
        "the outer loss is nan at the params that the inner solver reached",
    ),
    "outer gradient": (
        quadratic,
        lambda w, h, x: jnp.linalg.norm(0 * w),
        bl.Implicit(GD, 20),
        "gradient of the outer loss in params is not finite",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_number_that_is_not_finite_is_named(name: str) -> None:
    inner, outer, estimator, message = CASES[name]
    problem = bl.Problem(inner, outer)
    with pytest.warns(bl.EvidenceWarning, match=f"is not finite: .*{message}"):
        bl.hypergradient(problem, estimator, H, W, ONE, KEY)


@pytest.mark.parametrize("name", ["inner gradient, Reverse", "step, Reverse", "outer gradient"])
def test_tune_says_the_same(name: str) -> None:
    inner, outer, estimator, message = CASES[name]
    with pytest.warns((bl.DivergenceWarning, bl.EvidenceWarning), match=message):
        result = bl.tune(
            bl.Problem(inner, outer), estimator, optax.sgd(0.1), H, W, ONE, steps=2, key=KEY
        )
    assert "smaller step size" not in result.message


OPTIMISERS = {
    "adam": optax.adam(0.05),
    "adam with eps_root": optax.adam(0.05, eps_root=1e-8),
    "rmsprop": optax.rmsprop(0.05),
    "clipped adamw": optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.05)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_column_of_zeros_has_the_derivative_zero(name: str, x64: None) -> None:
    """Its gradient is 0 at every step; the derivative of the run is that of differences."""
    solver = bl.Optax(OPTIMISERS[name])
    problem = bl.Problem(dead_column, square)

    def value(h: float) -> float:
        return float(square(bl.solve(problem, solver, h, w, data, KEY, steps=5), h, data.outer))

    w, data = np.zeros(2), bl.Data(inner=np.ones(2), outer=np.zeros(1))
    expected = (value(0.5 + 1e-5) - value(0.5 - 1e-5)) / 2e-5
    for estimator in (bl.Reverse(solver, 5), bl.Forward(solver, 5)):
        estimate, _ = bl.hypergradient(problem, estimator, 0.5, w, data, KEY)
        assert estimate.grad == pytest.approx(expected, rel=1e-5)


def test_the_steps_of_adam_are_optax_own() -> None:
    w, tx = np.array([0.5, 0.0]), optax.adam(0.05)
    problem = bl.Problem(dead_column, square)
    run = bl.solve(problem, bl.Optax(tx), 0.5, w, bl.Data(ONE.inner, ONE.outer), KEY, steps=3)
    params, state = jnp.asarray(w, jnp.float32), tx.init(jnp.asarray(w, jnp.float32))
    for _ in range(3):
        updates, state = tx.update(jax.grad(dead_column)(params, 0.5, ONE.inner), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(run, params)


def test_iterates_that_overflow_are_called_that() -> None:
    problem = bl.Problem(quadratic, square)
    with pytest.warns(bl.EvidenceWarning, match="grew until they overflowed. Use a smaller step"):
        bl.hypergradient(problem, bl.Reverse(bl.GradientDescent(50.0), 99), H, W, ONE, KEY)


@jax.custom_vjp
def softplus(z: Any) -> Any:
    return jax.nn.softplus(z)


softplus.defvjp(lambda z: (softplus(z), z), lambda z, g: (g * jax.nn.sigmoid(z),))


@pytest.mark.parametrize(
    ("estimator", "works"),
    [
        (bl.Reverse(GD, 30), True),
        (bl.Implicit(GD, 30), True),
        (bl.UORO(GD, 3), True),
        (bl.PES(GD, 3, pairs=2), True),
        (bl.Forward(GD, 3), False),
        (bl.Auto(), False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_loss_without_forward_mode_is_right_or_refused(estimator: Any, works: bool) -> None:
    def problem(f: Any) -> bl.Problem:
        def inner(w: Any, h: Any, x: Any) -> Any:
            return jnp.mean(f(x[:, None] * w)) + jnp.exp(h) * jnp.sum(w**2) / 2

        return bl.Problem(inner, lambda w, h, x: jnp.sum((w - 1) ** 2) / 2)

    def grad(f: Any) -> Any:
        return bl.hypergradient(problem(f), estimator, H, W, ONE, KEY)[0].grad

    if works:
        np.testing.assert_allclose(grad(softplus), grad(jax.nn.softplus), rtol=1e-5)
        return
    with pytest.raises(TypeError, match=r"jax\.custom_jvp, which serves both modes, or take Rev"):
        grad(softplus)
    with pytest.raises(TypeError, match=r"jax\.custom_jvp"):
        bl.tune(problem(softplus), estimator, optax.sgd(0.1), H, W, ONE, steps=1, key=KEY)

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


ADAM = bl.Optax(optax.adam(0.05))
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
    "step, Reverse": (dead_column, square, bl.Reverse(ADAM, 3), "step 0 of Optax.*eps_root"),
    "step, Forward": (dead_column, square, bl.Forward(ADAM, 3), "step 0 of Optax.*eps_root"),
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


def test_the_cure_is_one(x64: None) -> None:
    """With ``eps_root`` the dead column has the derivative 0, the other that of differences."""
    solver = bl.Optax(optax.adam(0.05, eps_root=1e-8))
    problem = bl.Problem(dead_column, square)

    def value(h: float) -> float:
        return float(square(bl.solve(problem, solver, h, w, data, KEY, steps=5), h, data.outer))

    w, data = np.zeros(2), bl.Data(inner=np.ones(2), outer=np.zeros(1))
    estimate, _ = bl.hypergradient(problem, bl.Reverse(solver, 5), 0.5, w, data, KEY)
    assert estimate.grad == pytest.approx((value(0.5 + 1e-5) - value(0.5 - 1e-5)) / 2e-5, rel=1e-5)


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

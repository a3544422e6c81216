"""An inner loss that computes in bfloat16: what keeps its dtype, how far off derivatives are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import bilevel as bl

SHORT, KEY = jnp.bfloat16, jax.random.key(0)
PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = np.asarray(PIXELS[:160].reshape(-1, 8, 8, 1) / 16, np.float32)
DATA = bl.Data(inner=(IMAGES[:120], LABELS[:120]), outer=(IMAGES[120:], LABELS[120:160]))


def scores(w: Any, images: Any) -> Any:
    """Two convolutions and a dense layer."""
    for kernel in (w["first"], w["second"]):
        form = ("NHWC", "HWIO", "NHWC")
        images = jax.nn.softplus(
            jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=form)
        )
    return images.reshape(len(images), -1) @ w["last"]


def loss(z: Any, w: Any, h: Any, batch: Any) -> Any:
    fit = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), batch[1][:, None], 1))
    return fit + sum(jnp.exp(h[name]) * jnp.sum(w[name] ** 2) for name in h)


def whole(w: Any, h: Any, batch: Any) -> Any:
    return loss(scores(w, batch[0]), w, h, batch)


def outer(w: Any, h: Any, batch: Any) -> Any:
    return loss(scores(w, batch[0]), w, {}, batch)


IN_PARTS = bl.OutputLoss(outputs=lambda w, h, batch: scores(w, batch[0]), loss=loss)


def start() -> tuple[Any, Any]:
    shapes = {"first": (3, 3, 1, 4), "second": (3, 3, 4, 8), "last": (32, 10)}
    keys = dict(zip(shapes, jax.random.split(KEY, 3), strict=True))
    params = {k: 0.3 * jax.random.normal(keys[k], s) for k, s in shapes.items()}
    return dict.fromkeys(shapes, jnp.asarray(-5.0)), params


def distance(found: Any, exact: Any) -> float:
    a, b = (np.array([x for x in jax.tree.leaves(tree)]) for tree in (found, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(estimator: Any, inner: Any, at: Any) -> bl.Estimate:
    """Return the estimate in bfloat16, which is within two per cent of that in float32."""
    settings: dict[str, Any] = {"data": DATA, "key": KEY, "max_error": np.inf}
    exact, state = bl.hypergradient(bl.Problem(inner, outer), estimator, *at, **settings)
    problem = bl.Problem(inner, outer, compute_dtype=SHORT)
    found, after = bl.hypergradient(problem, estimator, *at, **settings)
    assert 0 < distance(found.grad, exact.grad) < 0.02  # 0: nothing was computed in bfloat16
    assert found.value == pytest.approx(float(exact.value), rel=0.01)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((found.grad, after.params)))
    assert found.value.dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)
    return found


@pytest.mark.extended
def test_unrolled_hypergradient_of_a_convolutional_network_is_within_two_per_cent() -> None:
    compare(bl.Reverse(bl.SGD(0.2, batch_size=40), steps=30), IN_PARTS, start())


@pytest.mark.parametrize("in_parts", [True, pytest.param(False, marks=pytest.mark.extended)])
def test_implicit_hypergradient_is_within_two_per_cent_with_an_exact_adjoint(
    in_parts: bool,
) -> None:
    """Of the last layer, which is strongly convex; its adjoint system is solved in float32."""
    hyper, params = start()
    kernels = {k: np.asarray(params[k]) for k in ("first", "second")}

    def apply(w: Any, h: Any, batch: Any) -> Any:
        return scores(w | {k: x.astype(batch[0].dtype) for k, x in kernels.items()}, batch[0])

    def only_last(w: Any, h: Any, batch: Any) -> Any:
        return loss(apply(w, h, batch), w, h, batch)

    parts = bl.OutputLoss(outputs=apply, loss=loss) if in_parts else only_last
    estimator = bl.Implicit(bl.SGD(0.1, momentum=0.9), steps=150, linear=bl.CG(tol=1e-5))
    at = {"last": hyper["last"]}, {"last": params["last"]}
    settings: dict[str, Any] = {"data": DATA, "key": KEY}
    problems = [bl.Problem(parts, only_outer(apply), compute_dtype=d) for d in (None, SHORT)]
    exact, found = (bl.hypergradient(p, estimator, *at, **settings)[0] for p in problems)
    assert 0 < distance(found.grad, exact.grad) < 0.02
    assert found.evidence.linear_residual < 2e-5


@pytest.mark.extended
def test_implicit_hypergradient_of_the_same_params_is_that_of_float32() -> None:
    """Neither the adjoint system nor the mixed product sees bfloat16."""
    at = start()
    still = bl.Implicit(bl.SGD(1e-30), steps=1, linear=bl.CG(tol=1e-3, max_steps=20))
    settings: dict[str, Any] = {"data": DATA, "key": KEY, "max_error": np.inf}
    problems = [bl.Problem(IN_PARTS, outer, compute_dtype=d) for d in (None, SHORT)]
    exact, found = (bl.hypergradient(p, still, *at, **settings)[0] for p in problems)
    assert distance(found.grad, exact.grad) < 1e-6


def only_outer(apply: Any) -> Any:
    return lambda w, h, batch: loss(apply(w, h, batch), w, {}, batch)


def line(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean((batch * w - 1) ** 2) / 2 + h * w**2 / 2


@pytest.mark.parametrize("estimator", [bl.Reverse, bl.Forward])
def test_the_error_of_a_small_problem_is_that_against_a_dense_solve(estimator: Any) -> None:
    """Ridge; the reference is made in float64, by numpy."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 6)).astype(np.float32)
    y = (X @ rng.normal(size=6) + rng.normal(size=64)).astype(np.float32)

    def fit(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    problem = bl.Problem(
        lambda w, h, batch: fit(w, h, batch) + jnp.exp(h) * jnp.sum(w**2) / 2,
        fit,
        compute_dtype=SHORT,
    )
    data = bl.Data(inner=(X[:32], y[:32]), outer=(X[32:], y[32:]))
    solver = bl.GradientDescent(0.3)
    at = problem, estimator(solver, 300), jnp.asarray(-1.0), jnp.zeros(6), data, KEY
    found, _ = bl.hypergradient(*at)
    (A, a), (B, b) = ((np.float64(X), np.float64(y)) for X, y in (data.inner, data.outer))
    H = A.T @ A / 32 + np.exp(-1) * np.eye(6)
    w = np.linalg.solve(H, A.T @ a / 32)
    exact = -np.exp(-1) * w @ np.linalg.solve(H, B.T @ (B @ w - b) / 32)
    error = abs(float(found.grad) - exact) / abs(exact)
    assert error > 1e-4  # bfloat16 has eight bits
    assert float(found.relative_error) == pytest.approx(error, rel=0.05)


def test_differences_of_gradients_are_not_taken_in_bfloat16() -> None:
    """With ``gamma=1000`` nothing would be left of them; float32 is fine."""
    data, at = bl.Data(jnp.ones(4), jnp.ones(4)), (jnp.asarray(1.0), jnp.asarray(0.0))
    estimator = bl.Penalty(bl.GradientDescent(0.3), 200, gamma=100.0)

    def find(dtype: Any) -> bl.Estimate:
        problem = bl.Problem(line, lambda w, h, x: (w - 1) ** 2 / 2, compute_dtype=dtype)
        return bl.hypergradient(problem, estimator, *at, data, KEY)[0]

    with pytest.raises(ValueError, match="of which bfloat16 keeps none"):
        find(SHORT)
    # w = 1 / (1 + h) = 1/2; (w - 1) dw/dh = 1/8
    assert find(jnp.float32).grad == pytest.approx(0.125, rel=0.02)


def test_what_is_cast_and_what_is_not() -> None:
    """Params and batch on the way in; the result and the gradient are those of the params."""
    seen = {}

    def watched(w: Any, h: Any, batch: Any) -> Any:
        seen.update(w=w.dtype, h=h.dtype, batch=batch.dtype)
        return line(w, h, batch)

    problem = bl.Problem(watched, line, compute_dtype=SHORT)
    third = jnp.asarray(1 / 3)
    value, slope = jax.value_and_grad(problem.inner)(third, third, jnp.ones(4))
    assert seen == {"w": SHORT, "h": jnp.float32, "batch": SHORT}
    assert value.dtype == slope.dtype == jnp.float32
    short = jnp.asarray(third, SHORT)
    assert value == jax.jit(line)(short, third, jnp.ones(4, SHORT))
    problem.exact.inner(third, third, jnp.ones(4))
    assert seen["w"] == jnp.float32
    assert problem.exact.compute_dtype is None
    assert bl.Problem(watched, line, compute_dtype=SHORT) == problem


def test_sums_over_rows_of_a_loss_in_parts_are_float32() -> None:
    """A mean of many equal terms in bfloat16 would have three digits."""
    parts = bl.OutputLoss(
        outputs=lambda w, h, batch: batch * w,
        loss=lambda z, w, h, batch: jnp.mean((z - 1.001) ** 2),
    )
    problem = bl.Problem(parts, line, compute_dtype=SHORT)
    found = problem.inner(jnp.asarray(1.0), jnp.asarray(0.0), jnp.full(1000, 2.0))
    assert found == pytest.approx(0.999**2, rel=1e-6)


def test_keys_and_model_state_go_through() -> None:
    def inner(w: Any, h: Any, batch: Any, state: Any, key: Any) -> Any:
        noise = 0.01 * jax.random.normal(key, batch.shape, batch.dtype)
        new = 0.9 * state + 0.1 * jnp.mean(batch)
        return jnp.mean((batch + noise) * (w - 1) ** 2) / 2 + h * w**2 / 2, new

    def held(w: Any, h: Any, batch: Any, state: Any, key: Any) -> Any:
        return (w - 0.2) ** 2 + 0 * state

    data, at = bl.Data(jnp.ones(6), jnp.ones(2)), (jnp.asarray(0.5), jnp.asarray(0.0))
    grads = []
    for dtype in (None, SHORT):
        problem = bl.Problem(inner, held, compute_dtype=dtype, stochastic=True, has_state=True)
        for estimator in (
            bl.Reverse(bl.GradientDescent(0.3), 10),
            bl.Implicit(bl.GradientDescent(0.3), 30),
        ):
            found, after = bl.hypergradient(
                problem, estimator, *at, data, KEY, model_state=jnp.zeros(()), max_error=np.inf
            )
            assert after.model_state.dtype == jnp.float32
            grads.append(float(found.grad))
    np.testing.assert_allclose(grads[2:], grads[:2], rtol=0.02)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="float16 would need its losses scaled"):
        bl.Problem(line, line, compute_dtype=jnp.float16)
    with pytest.raises(ValueError, match="takes no compute_dtype"):
        bl.Problem(outer=line, fixed_point=lambda w, h, b: w, compute_dtype=SHORT)

"""Meta-learning against NumPy: linear models in closed form, MAML by central differences."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from tasks.base import Task
from tasks.datasets.task_distributions import Episodes
from tasks.meta import meta
from tasks.parts.adaptation import LearnedRates
from tasks.parts.meta_networks import take_patches

SMALL: dict[str, Any] = dict(pool=3, test_tasks=4, shots=5, queries=6, seed=1)
KEY = jax.random.key(0)


def arrays(level: Any, row: int) -> tuple[np.ndarray, np.ndarray]:
    """``[n, 2]`` inputs with the intercept's 1, and targets ``[n]``."""
    x, y = (np.asarray(leaf[row])[:, 0] for leaf in level)
    return np.stack([x, np.ones_like(x)], 1), y


def call(task: Task, estimator: Any) -> tuple[bl.Estimate, Any]:
    return bl.hypergradient(task.problem, estimator, task.hyper, task.params, task.data, KEY)


def tune(task: Task, estimator: Any, outer: Any, **settings: Any) -> bl.Result:
    start = task.hyper, task.params, task.data
    return bl.tune(task.problem, estimator, outer, *start, **settings)


def flat(head: Any) -> np.ndarray:
    return np.array([np.asarray(head["kernel"]).item(), np.asarray(head["bias"]).item()])


def test_metrics_of_a_linear_model_are_those_of_numpy(x64) -> None:
    task = meta(widths=(), step_size=0.02, **SMALL)
    test = meta(widths=(), step_size=0.02, **(SMALL | {"pool": 9}))
    metrics = task.metrics(task.hyper, None)
    assert list(metrics)[:4] == ["mse@1", "mse@6", "mse@11", "mse@0"]
    assert metrics == test.metrics(task.hyper, None), "test tasks do not depend on the pool"
    start = flat(task.hyper["start"]["head"])
    scores = {0: [], 1: [], 6: [], 11: []}
    rng = np.random.default_rng(np.random.SeedSequence(1).spawn(2)[1])
    amplitude, phase = rng.uniform(0.1, 5, 4), rng.uniform(0, np.pi, 4)
    x = rng.uniform(-5, 5, (4, 105))
    for a, p, points in zip(amplitude, phase, x, strict=True):
        X, y = np.stack([points, np.ones(105)], 1), a * np.sin(points - p)
        w = start
        for steps in range(12):
            if steps in scores:
                scores[steps].append(np.mean((X[5:] @ w - y[5:]) ** 2))
            w = w - 0.02 * 2 / 5 * X[:5].T @ (X[:5] @ w - y[:5])
    for steps, found in scores.items():
        assert metrics[f"mse@{steps}"] == pytest.approx(np.mean(found), rel=1e-10)
        half = 1.96 * np.std(found, ddof=1) / 2
        assert metrics[f"±@{steps}"] == pytest.approx(half, rel=1e-10)


def test_implicit_maml_of_a_linear_model_is_the_closed_form(x64) -> None:
    """w* = (H + s)^-1 (b + s start), d outer / d start = s (H + s)^-1 grad outer, task by task."""
    strength, made = 1.5, SMALL | {"pool": 1}
    task = meta(widths=(), adapt="proximal", strength=strength, **made)
    (X, y), (Xq, yq) = arrays(task.data.inner, 0), arrays(task.data.outer, 0)
    H = 2 * X.T @ X / len(y) + strength * np.eye(2)
    w = np.linalg.solve(H, 2 * X.T @ y / len(y) + strength * flat(task.hyper["start"]["head"]))
    expected = strength * np.linalg.solve(H, 2 * Xq.T @ (Xq @ w - yq) / len(yq))
    linear = bl.GaussNewton(bl.CG(tol=1e-12))  # here the Hessian itself
    implicit = bl.Implicit(bl.GradientDescent(0.03), steps=600, linear=linear)
    estimate, state = call(task, bl.Sampled(implicit, 2))
    np.testing.assert_allclose(flat(state.params["head"]), w, rtol=1e-8)
    np.testing.assert_allclose(flat(estimate.grad["start"]["head"]), expected, rtol=1e-8)


def test_ridge_head_is_the_closed_form(x64) -> None:
    """With the body as it is: d outer / d log penalty = -(grad outer)^T (H + p)^-1 p w."""
    task = meta(widths=(4,), adapt="ridge", **(SMALL | {"pool": 1}))
    body = jax.tree.map(np.asarray, task.hyper["body"]["Dense_0"])
    (X, y), (Xq, yq) = arrays(task.data.inner, 0), arrays(task.data.outer, 0)

    def features(X: np.ndarray) -> np.ndarray:
        hidden = np.maximum(X[:, :1] @ body["kernel"] + body["bias"], 0)
        return np.concatenate([hidden, np.ones((len(X), 1))], 1)

    F, Fq = features(X), features(Xq)
    H = F.T @ F / len(y) + np.eye(5)
    w = np.linalg.solve(H, F.T @ y / len(y))
    slope = -(2 * Fq.T @ (Fq @ w - yq) / len(yq)) @ np.linalg.solve(H, w)
    estimate, state = call(task, bl.Sampled(bl.ClosedForm(), 1))
    np.testing.assert_allclose(state.params["kernel"][:, 0], w[:4], rtol=1e-9)
    assert estimate.grad["log_penalty"] == pytest.approx(slope, rel=1e-9)


def test_maml_is_the_central_difference_of_numpy(x64) -> None:
    """One hidden layer of rectified units, one step by back-propagation written out."""
    task = meta(widths=(6,), step_size=0.05, **(SMALL | {"pool": 1}))
    (X, y), (Xq, yq) = arrays(task.data.inner, 0), arrays(task.data.outer, 0)
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, task.hyper))

    def value(leaves: list[np.ndarray]) -> float:
        weights = jax.tree.unflatten(structure, leaves)["start"]
        body, head = weights["body"]["Dense_0"], weights["head"]
        A, a, B, b = body["kernel"], body["bias"], head["kernel"], head["bias"]
        hidden = np.maximum(X[:, :1] @ A + a, 0)
        back = 2 / len(y) * ((hidden @ B)[:, 0] + b - y)
        inside = back[:, None] * B[:, 0] * (hidden > 0)
        r = 0.05
        A, a = A - r * X[:, :1].T @ inside, a - r * inside.sum(0)
        B, b = B - r * (hidden.T @ back)[:, None], b - r * back.sum()
        return np.mean(((np.maximum(Xq[:, :1] @ A + a, 0) @ B)[:, 0] + b - yq) ** 2)

    estimator = bl.Sampled(bl.Reverse(bl.GradientDescent(0.05), steps=1), 1)
    estimate, _ = call(task, estimator)
    assert estimate.value == pytest.approx(value(leaves), rel=1e-12)
    rng, step = np.random.default_rng(0), 1e-6
    for _ in range(3):
        along = [rng.normal(size=leaf.shape) for leaf in leaves]
        high, low = (
            value([w + s * d for w, d in zip(leaves, along, strict=True)]) for s in (step, -step)
        )
        grad = jax.tree.leaves(estimate.grad)
        found = sum(np.sum(np.asarray(g) * d) for g, d in zip(grad, along, strict=True))
        assert found == pytest.approx((high - low) / (2 * step), rel=1e-6)


def test_problems_of_two_seeds_are_equal() -> None:
    one, two = (meta(widths=(3,), **(SMALL | {"seed": seed})) for seed in (0, 1))
    assert one.problem == two.problem
    assert not np.array_equal(one.data.inner[0], two.data.inner[0])
    assert one.problem != meta(adapt="ridge", widths=(3,), **SMALL).problem


def test_patches_are_a_strided_convolution() -> None:
    rng = np.random.default_rng(0)
    for size in (6, 7):
        x, kernel = rng.normal(size=(2, size, size, 3)), rng.normal(size=(3, 3, 3, 4))
        x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
        expected = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        found = take_patches(x) @ kernel.reshape(27, 4)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_episodes_show_no_drawing_twice() -> None:
    """Images that say who drew what: character 20 c + drawer d everywhere."""
    codes = jnp.arange(12 * 20, dtype=jnp.float32).reshape(12, 20, 1, 1)
    data = bl.Data(inner=codes, outer=codes)
    draw = jax.jit(jax.vmap(Episodes(ways=4, shots=2, queries=3), in_axes=(None, 0)))
    task = draw(data, jax.random.split(KEY, 50))
    (X, y), (Xq, yq) = (jax.tree.map(np.asarray, level) for level in (task.inner, task.outer))
    assert X.shape == (50, 8, 1, 1)
    assert Xq.shape == (50, 12, 1, 1)
    codes, asked = (np.rint(255 * a[..., 0, 0]).astype(int) for a in (X, Xq))
    for shown, labels, other, truth in zip(codes, y, asked, yq, strict=True):
        assert len({*shown, *other}) == 20, "a drawing appears twice"
        character = {label: set(shown[labels == label] // 20) for label in range(4)}
        assert len(set.union(*character.values())) == 4
        assert all(len(found) == 1 for found in character.values())
        pairs = zip(other, truth, strict=True)
        assert all({code // 20} == character[label] for code, label in pairs)
    assert len(np.unique(codes // 20)) == 12


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapt='everything' must be one of all, head"):
        meta(adapt="everything")
    with pytest.raises(ValueError, match=r"data='cosine' must be sinusoid or omniglot"):
        meta("cosine")
    with pytest.raises(ValueError, match=r"learn_rates needs gradient steps"):
        meta(adapt="ridge", learn_rates=True)
    with pytest.raises(ValueError, match=r"there is no .*omniglot_background.npz"):
        meta("omniglot", root=str(tmp_path))
    task = meta(**SMALL)
    with pytest.raises(ValueError, match=r"estimator=sampled, which draws tasks"):
        call(task, bl.Reverse(bl.GradientDescent(0.01), 1))


def maml(task: Any, steps: int, state: Any = None, **how: Any) -> bl.Result:
    estimator = bl.Sampled(bl.Reverse(bl.GradientDescent(**how), steps=1), tasks=25)
    outer = bl.transform(optax.adam, learning_rate=1e-3)
    return tune(
        task,
        estimator,
        outer,
        steps=steps,
        key=jax.random.key(5),
        state=state,
        hooks=[bl.Blocks(500)],
    )


def judged_by_numpy(start: Any, curves: int = 4000) -> np.ndarray:
    """Errors on 100 other points after one step of 0.01; curves that nothing else has drawn."""
    rng, errors = np.random.default_rng(987), []
    a, A, b, B, c, C = (np.asarray(leaf, float) for leaf in jax.tree.leaves(start))
    for _ in range(curves):
        size, phase = rng.uniform(0.1, 5), rng.uniform(0, np.pi)
        x, z = rng.uniform(-5, 5, (10, 1)), rng.uniform(-5, 5, (100, 1))
        one = np.maximum(x @ A + a, 0)
        two = np.maximum(one @ B + b, 0)
        back = 0.01 * 0.2 * (two @ C + c - size * np.sin(x - phase))
        at_two = back @ C.T * (two > 0)
        at_one = at_two @ B.T * (one > 0)
        first = np.maximum(z @ (A - x.T @ at_one) + a - at_one.sum(0), 0)
        second = np.maximum(first @ (B - one.T @ at_two) + b - at_two.sum(0), 0)
        found = second @ (C - two.T @ back) + c - back.sum(0)
        errors.append(np.mean((found - size * np.sin(z - phase)) ** 2))
    return np.array(errors)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sinusoids_by_maml() -> None:
    task = meta(pool=200_000)
    result = maml(task, 20_000, step_size=0.01)
    metrics = task.metrics(result.hyper, None)
    print("20 000 iterations:", metrics)
    assert metrics["mse@1"] <= 0.60
    assert metrics["mse@1"] <= 0.2 * 2.97
    errors = judged_by_numpy(result.hyper["start"])  # a number this good must not be a leak
    error, own = 1.96 * errors.std() / len(errors) ** 0.5, metrics["±@1"]
    assert errors.mean() == pytest.approx(metrics["mse@1"], abs=2 * np.hypot(error, own))
    result = maml(task, 10_000, result.state, step_size=0.01)
    metrics = task.metrics(result.hyper, None)
    print("30 000 iterations:", metrics)
    assert metrics["mse@1"] <= 0.45


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_learned_rates_beat_the_one_they_start_from() -> None:
    """Meta-SGD (Li et al., 2017, table 1: below MAML at every number of shots)."""
    plain, learned = (meta(learn_rates=rates) for rates in (False, True))
    one = maml(plain, 3000, step_size=0.01)
    many = maml(learned, 3000, step_size=LearnedRates())
    best = plain.metrics(one.hyper, None)
    found = learned.metrics(many.hyper, None)
    assert found["mse@1"] + found["±@1"] < best["mse@1"] - best["±@1"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_omniglot(shared_data: Path) -> None:
    """5 ways, 1 shot, unseen alphabets: above .80 within 2 000 iterations; pixels alone: .46."""
    task = meta("omniglot", "ridge", shots=1, queries=5, widths=(32, 32, 32, 64), test_tasks=500)
    estimator = bl.Sampled(bl.ClosedForm(), tasks=4, draw=Episodes(5, 1, 5))
    result = tune(
        task, estimator, optax.adam(2e-3), steps=800, key=jax.random.key(5), hooks=[bl.Blocks(100)]
    )
    metrics = task.metrics(result.hyper, None)
    print(metrics)
    assert metrics["accuracy"] - metrics["±"] > 0.80
    assert 0.40 < task.baselines()["nearest neighbour on pixels"]["accuracy"] < 0.52

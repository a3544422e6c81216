"""Every mistake is answered at once with what, where, what was expected, and the likely cure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import ridge

CASE = ridge(seed=0)
KEY = jax.random.key(0)
(X, Y), (V, T) = CASE.data.inner, CASE.data.outer
GD = bl.GradientDescent(step_size=0.3)
REVERSE = bl.Reverse(GD, steps=3)


def hypergradient(**changed: Any) -> Any:
    given = {
        "problem": CASE.problem,
        "estimator": REVERSE,
        "hyper": CASE.hyper,
        "params": CASE.params,
        "data": CASE.data,
        "key": KEY,
    }
    return bl.hypergradient(**(given | changed))


def tune(**changed: Any) -> Any:
    given = {
        "problem": CASE.problem,
        "estimator": REVERSE,
        "outer": optax.sgd(0.1),
        "hyper": CASE.hyper,
        "params": CASE.params,
        "data": CASE.data,
        "key": KEY,
        "steps": 3,
    }
    return bl.tune(**(given | changed))


def losing(inner: Any = CASE.problem.inner, outer: Any = CASE.problem.outer) -> Any:
    return hypergradient(problem=bl.Problem(inner, outer))


def minibatches(batch_size: Any) -> Any:
    return hypergradient(estimator=bl.Forward(bl.SGD(0.1, batch_size), steps=3))


Mistake = tuple[Callable[[], Any], type[Exception], str]
STRUCTURES: list[Mistake] = [
    (
        lambda: hypergradient(params=np.zeros(7)),
        ValueError,
        r"problem.inner failed on params float32\[7\], hyper float32\[4\].*have the structure",
    ),
    (lambda: hypergradient(params={"w": np.zeros(4)}), ValueError, r"\{'w': 'float32\[4\]'\}"),
    (lambda: hypergradient(hyper=np.zeros(3)), ValueError, r"hyper float32\[3\]"),
    (lambda: hypergradient(data=bl.Data(X, V)), ValueError, r"batch float32\[23, 4\]"),
    (lambda: tune(hyper=np.zeros(3), state=tune().state), ValueError, r"float32\[3\].*state.hyper"),
    (
        lambda: tune(params={"w": np.zeros(4)}, state=tune().state),
        ValueError,
        "params has structure .* but state.start has",
    ),
    (lambda: hypergradient(data=(X, Y)), TypeError, r"data must be bl.Data.*got tuple"),
    (lambda: hypergradient(problem=CASE.problem.inner), TypeError, r"problem must be bl.Problem"),
    (lambda: hypergradient(estimator=bl.Reverse), TypeError, "such as .*got the class Reverse"),
    (lambda: hypergradient(estimator=GD), TypeError, "put it into an estimator"),
    (
        lambda: hypergradient(estimator=bl.Reverse(0.1, steps=3)),  # pyright: ignore
        TypeError,
        r"Reverse: solver must be a solver such as bl.SGD.*got float",
    ),
    (
        lambda: hypergradient(estimator=bl.Implicit(GD, 3, linear="cg")),  # pyright: ignore
        TypeError,
        r"Implicit: linear must be a linear solver such as bl.CG.*got str",
    ),
    (lambda: hypergradient(key=0), TypeError, r"key must be a JAX random key.*got int"),
    (lambda: tune(key=None), ValueError, r"tune needs key=jax.random.key"),
    (lambda: tune(outer=0.1), TypeError, r"expected an optax transformation.*got 0.1"),
    (lambda: bl.Problem(3.0, jnp.sum), TypeError, "Problem.inner must be a function.*got float"),
]
VALUES: list[Mistake] = [
    (lambda: hypergradient(hyper=1), ValueError, "hyper has dtype int32.*1.0 instead of 1"),
    (
        lambda: hypergradient(hyper={"a": np.zeros(2), "b": np.zeros(2, int)}),
        ValueError,
        r"hyper\['b'\] has dtype int",
    ),
    (
        lambda: hypergradient(params=np.zeros(4, complex)),
        ValueError,
        "params is complex .*the two parts, for example",
    ),
    (lambda: hypergradient(hyper={"z": 1j}), ValueError, r"hyper\['z'\] is complex"),
    (lambda: tune(params=np.zeros(4, complex)), ValueError, "params is complex"),
    (lambda: tune(hyper=np.zeros(4, complex)), ValueError, "hyper is complex"),
    (lambda: hypergradient(hyper={}), ValueError, "hyper is empty"),
    (lambda: hypergradient(hyper=np.zeros(0)), ValueError, "hyper is empty"),
    (lambda: hypergradient(hyper="log"), TypeError, "hyper must be float numbers, got 'log'"),
    (lambda: tune(hyper=np.array([0.0, np.nan, 0, 0])), ValueError, r"hyper has 1 NaN.*\(1,\)"),
    (lambda: tune(params=np.full(4, np.inf)), ValueError, "params has 4 NaN or infinite"),
    (lambda: hypergradient(params=np.zeros(4, int)), ValueError, "params has dtype int"),
    (
        lambda: bl.Data(inner=(np.where(X > 2, np.nan, X), Y), outer=(V, T)),
        ValueError,
        r"data.inner\[0\] has \d+ NaN or infinite entries, the first at index .*impute",
    ),
    (
        lambda: bl.Data(inner=(X, Y), outer=(V, T[:-1])),
        ValueError,
        r"data.outer.*data.outer\[0\]: 13, data.outer\[1\]: 12. Were two arrays split differently",
    ),
    (
        lambda: hypergradient(data=bl.Data(inner=(X, Y, 1.0), outer=(V, T))),
        ValueError,
        r"data.inner\[2\] is a scalar.*leading axis",
    ),
]
SETTINGS: list[Mistake] = [
    (lambda: minibatches(24), ValueError, "batch_size=24 is larger than .* 23. Use a smaller"),
    (lambda: minibatches(0), ValueError, "batch_size must be at least 1, got 0"),
    (lambda: minibatches(2.0), TypeError, r"batch_size must be an integer, got 2.0"),
    (lambda: minibatches("2"), TypeError, "batch_size must be an integer, got '2'"),
    (lambda: bl.SGD(0.1, sampling="shuffle"), ValueError, r"\('iid', .*'epoch'\), got 'shuffle'"),
    (lambda: bl.Optax(optax.sgd(0.1), 3, "all"), ValueError, "sampling must be one of.*'all'"),
    (lambda: bl.SGD(step_size=-0.1), ValueError, "SGD: step_size must be a positive finite"),
    (lambda: bl.GradientDescent(0.0), ValueError, "GradientDescent: step_size must be a positive"),
    (lambda: bl.SGD(step_size="0.1"), TypeError, "step_size must be a number or a function"),
    (lambda: bl.SGD(lambda a, b, c: a), TypeError, r"fn\(count\) or fn\(count, hyper\)"),
    (lambda: bl.SGD(0.1, momentum=1.0), ValueError, r"momentum must lie in \[0, 1\), got 1.0"),
    (lambda: bl.SGD(0.1, momentum="0.9"), ValueError, r"momentum must lie .* got '0.9'"),
    (lambda: bl.InverseTime(mu=0.0, L=1.0), ValueError, "InverseTime: mu must be a positive"),
    (lambda: bl.Optax(0.1), TypeError, "Optax: expected an optax transformation"),
    (lambda: bl.CG(tol=0.0), ValueError, "CG: tol must be a positive finite number"),
    (lambda: bl.CG(max_steps=0), ValueError, "CG: max_steps must be at least 1"),
    (lambda: bl.Forward(GD, steps=0), ValueError, "Forward: steps must be at least 1, got 0"),
    (lambda: bl.Implicit(GD, steps=-5), ValueError, "Implicit: steps must be at least 1, got -5"),
    (lambda: bl.Reverse(GD, steps=1e3), TypeError, "Reverse: steps must be an integer, got 1000.0"),
    (lambda: bl.Reverse(GD, 5, memory="disk"), ValueError, "memory must be one of .*got 'disk'"),
    (lambda: bl.Reverse(GD, 5, truncate=6), ValueError, "truncate must lie between 1 and steps=5"),
    (lambda: bl.Forward(GD, 5, start=3, average=3), ValueError, "leave room within steps=5"),
    (lambda: tune(steps=0), ValueError, "tune: steps must be at least 1"),
    (lambda: bl.Blocks(every=0), ValueError, "Blocks: every must be at least 1"),
    (
        lambda: bl.solve(CASE.problem, GD, CASE.hyper, CASE.params, CASE.data, KEY, steps=0),
        ValueError,
        "solve: steps must be at least 1",
    ),
    (
        lambda: bl.check(CASE.problem, CASE.hyper, CASE.params, CASE.data, epsilon=0.0),
        ValueError,
        "check: epsilon must be a positive",
    ),
]
LOSSES: list[Mistake] = [
    (
        lambda: losing(inner=lambda w, h, b: w**2 * h),
        ValueError,
        r"problem.inner must return a floating-point scalar, got float32\[4\]. Take the mean",
    ),
    (
        lambda: losing(outer=lambda w, h, b: (jnp.sum(w), {})),
        ValueError,
        "problem.outer must return a floating-point scalar",
    ),
    (lambda: losing(outer=lambda w, h, b: None), ValueError, "problem.outer must return"),
    (lambda: losing(inner=lambda w, h, b: jnp.sum(w > 0)), ValueError, r"scalar, got int32\[\]"),
    (lambda: losing(inner=lambda w, h: jnp.sum(w)), ValueError, "takes 2 positional arguments"),
    (
        lambda: losing(lambda w, h, b: jnp.sum(w**2), lambda w, h, b: jnp.sum(w)),
        ValueError,
        "Reverse's hypergradient does not depend on hyper: .* would be a silent 0. Use it",
    ),
]


@pytest.mark.parametrize(("mistake", "kind", "message"), [*STRUCTURES, *VALUES, *SETTINGS, *LOSSES])
def test_the_message(mistake: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"(?s){message}"):
        mistake()

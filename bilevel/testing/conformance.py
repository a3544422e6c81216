"""What every estimator must satisfy: plain functions that raise ``AssertionError`` if it does not.

Each takes a factory ``(solver, steps) -> estimator`` and a :class:`bilevel.testing.Case`, in JAX's
current precision. For your own estimator, with pytest:

    @pytest.mark.parametrize("law", bl.testing.CONFORMANCE, ids=lambda law: law.__name__)
    def test_mine(law):
        law(MyEstimator, bl.testing.ridge(seed=0))
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.estimate import Counts, Estimate, Lower
from bilevel.estimators.base import Estimator
from bilevel.hypergradient import hypergradient
from bilevel.solvers.base import Solver
from bilevel.solvers.gradient_descent import GradientDescent
from bilevel.solvers.sgd import SGD
from bilevel.testing.oracle import dense_hypergradient
from bilevel.testing.problems import Case
from bilevel.trees import PyTree, dtype, norm

Factory = Callable[[Solver, int], Estimator]
_FEW = 5  # solver steps where convergence does not matter


def equals_dense_oracle(factory: Factory, case: Case) -> None:
    """Run to convergence, value and gradient are those of the dense oracle: 1e-8, float32 1e-4.

    Where the evidence claims noise or bias, the gradient may be off by that too: by 4 standard
    errors, and by twice the estimated bias.
    """
    estimate, lower = _converged(factory, case)
    value, grad = dense_hypergradient(case.problem, case.hyper, lower.params, case.data)
    tolerance = 1e-8 if dtype(estimate.grad) == jnp.float64 else 1e-4
    np.testing.assert_allclose(estimate.value, value, rtol=tolerance)
    scale = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(grad)))
    error = jax.tree.map(lambda a, b: np.asarray(a, float) - b, estimate.grad, grad)
    excess = jax.tree.map(lambda e, a: np.maximum(np.abs(e) - a, 0), error, _allowed(estimate))
    for path, leaf in jax.tree_util.tree_leaves_with_path(excess):
        where = f"grad{jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(leaf / scale, 0, atol=tolerance, err_msg=where)


def keeps_structure(factory: Factory, case: Case) -> None:
    """``grad`` is like ``hyper``, ``value`` a scalar; the state is alike from call to call."""
    case = _cast(case)
    estimate, lower = _stochastic(factory, case)
    _, following = _stochastic(factory, case, state=lower)
    _require(isinstance(estimate, Estimate), "step must return an Estimate first")
    _require(isinstance(lower, Lower), "step must return a Lower second")
    _alike("grad", estimate.grad, case.hyper)
    _alike("value", estimate.value, jnp.zeros((), dtype(case.hyper)))
    _alike("params", lower.params, case.params)
    _alike("state", following, lower)


def repeats_with_its_key(factory: Factory, case: Case) -> None:
    """The same key gives the same numbers bit for bit, another key other minibatches."""
    first, _ = _stochastic(factory, case, seed=1)
    again, _ = _stochastic(factory, case, seed=1)
    other, _ = _stochastic(factory, case, seed=2)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    _require(bool(first.value != other.value), "the key does not reach the solver's minibatches")


def maps_over_keys(factory: Factory, case: Case) -> None:
    """``vmap`` over keys equals the loop."""
    case, estimator = _cast(case), factory(_sgd(case), _FEW)

    def one(key: Any) -> Estimate:
        problem, hyper, params, data = case.problem, case.hyper, case.params, case.data
        return hypergradient(problem, estimator, hyper, params, data, key)[0]

    keys = _keys(range(3))
    mapped = jax.vmap(one)(keys)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one(key) for key in keys))
    _close("vmap over keys", mapped, looped)


def compiles_once(factory: Factory, case: Case) -> None:
    """A changed step size, hyper or batch of data, and a carried state, trace nothing again."""
    traces, problem = [], case.problem

    def inner(params: PyTree, hyper: PyTree, batch: PyTree) -> Any:
        traces.append(None)
        return problem.inner(params, hyper, batch)

    case = dataclasses.replace(case, problem=dataclasses.replace(problem, inner=inner))
    _, lower = _stochastic(factory, case)
    before = len(traces)
    half = dataclasses.replace(case, step_size=case.step_size / 2)
    moved = dataclasses.replace(case, hyper=jax.tree.map(lambda h: h - 0.5, case.hyper))
    reversed_rows = jax.tree.map(lambda leaf: leaf[::-1].copy(), case.data)
    for changed in (half, moved, dataclasses.replace(case, data=reversed_rows)):
        _stochastic(factory, changed)
    _stochastic(factory, case, state=lower)
    _require(before > 0, "the inner loss was never evaluated")
    _require(len(traces) == before, f"traced the inner loss {len(traces) - before} times again")


def reports_evidence(factory: Factory, case: Case) -> None:
    """The residual is the one that can be recomputed; counts are counted; all is finite."""
    case = _cast(case)
    for estimate, lower in (_converged(factory, case), _stochastic(factory, case)):
        evidence = estimate.evidence
        end, begun = (
            norm(jax.grad(case.problem.inner)(params, case.hyper, case.data.inner))
            for params in (lower.params, case.params)
        )
        eps = float(jnp.finfo(dtype(case.hyper)).eps)
        np.testing.assert_allclose(evidence.inner_residual, end / begun, rtol=1e-3, atol=100 * eps)
        _require(isinstance(evidence.counts, Counts), "evidence.counts must be Counts")
        _require(int(evidence.counts.gradients) >= 1, "no inner gradient was counted")
        finite = [bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(evidence)]
        _require(all(finite), f"evidence is not finite: {evidence}")
    _require(
        float(_converged(factory, case)[0].evidence.inner_residual) < 1000 * eps,
        "the residual is not small although the solver has converged",
    )


def refuses_what_it_cannot_see(factory: Factory, case: Case) -> None:
    """A hyperparameter that nothing reads is an error that names it, never a silent 0."""

    def inner(params: PyTree, hyper: PyTree, batch: PyTree) -> Any:
        return case.problem.inner(params, hyper["used"], batch)

    def outer(params: PyTree, hyper: PyTree, batch: PyTree) -> Any:
        return case.problem.outer(params, hyper["used"], batch)

    blind = dataclasses.replace(
        case,
        problem=dataclasses.replace(case.problem, inner=inner, outer=outer),
        hyper={"used": case.hyper, "unread": np.ones(2)},
    )
    try:
        _stochastic(factory, blind)
    except ValueError as error:
        _require("hyper['unread']" in str(error), f"the message does not name the leaf: {error}")
    else:
        raise AssertionError("a hyperparameter that nothing reads was not refused")


def shows_its_settings(factory: Factory, case: Case) -> None:
    """Equal settings compare equal, others do not; a round trip as a pytree changes nothing."""
    estimator = factory(GradientDescent(step_size=0.25), _FEW)
    _require(estimator == factory(GradientDescent(step_size=0.25), _FEW), "equal ones differ")
    _require(estimator != factory(GradientDescent(step_size=0.5), _FEW), "others compare equal")
    leaves, treedef = jax.tree.flatten(estimator)
    _require(jax.tree.unflatten(treedef, leaves) == estimator, "the pytree round trip changes it")
    _require(0.25 in leaves, "the solver's step size is not a leaf: changing it would recompile")
    _require("0.25" in repr(estimator), f"settings do not show in {estimator!r}")


CONFORMANCE: tuple[Callable[[Factory, Case], None], ...] = (
    equals_dense_oracle,
    keeps_structure,
    repeats_with_its_key,
    maps_over_keys,
    compiles_once,
    reports_evidence,
    refuses_what_it_cannot_see,
    shows_its_settings,
)


def _allowed(estimate: Estimate) -> PyTree:
    """How far the gradient may be off by what the estimate itself reports."""
    claims = ((4, estimate.evidence.standard_error), (2, estimate.evidence.bias))
    total = jax.tree.map(np.zeros_like, estimate.grad)
    for times, claim in claims:
        if claim is not None:
            total = jax.tree.map(lambda t, c, n=times: t + n * np.abs(c), total, claim)
    return total


def _converged(factory: Factory, case: Case) -> tuple[Estimate, Lower]:
    estimator = factory(GradientDescent(step_size=case.step_size), case.steps)
    return _run(estimator, case, 0, None)


def _stochastic(
    factory: Factory, case: Case, seed: int = 0, state: Lower | None = None
) -> tuple[Estimate, Lower]:
    return _run(factory(_sgd(case), _FEW), case, seed, state)


def _run(
    estimator: Estimator, case: Case, seed: int, state: Lower | None
) -> tuple[Estimate, Lower]:
    problem, hyper, params, data = case.problem, case.hyper, case.params, case.data
    key = jax.random.key(seed)
    return hypergradient(problem, estimator, hyper, params, data, key, state=state)


def _sgd(case: Case) -> SGD:
    return SGD(step_size=case.step_size / 4, batch_size=7, momentum=0.5, sampling="epoch")


def _cast(case: Case) -> Case:
    """The case with JAX arrays in the current precision."""
    arrays = jax.tree.map(jnp.asarray, (case.hyper, case.params, case.data))
    return dataclasses.replace(case, hyper=arrays[0], params=arrays[1], data=arrays[2])


def _keys(seeds: Any) -> Any:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def _alike(name: str, got: PyTree, expected: PyTree) -> None:
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), t) for t in (got, expected)
    ]
    _require(shapes[0] == shapes[1], f"{name} is {shapes[0]}, expected {shapes[1]}")


def _close(name: str, got: PyTree, expected: PyTree) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        inexact = jnp.issubdtype(b.dtype, jnp.inexact)
        tolerance = 200 * float(jnp.finfo(b.dtype).eps) if inexact else 0.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)

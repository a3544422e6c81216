"""Laws of accuracy: a converged estimate against dense solves, differences, and its own rate."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core import Estimate
from bilevel.testing.oracle import dense_curvature, dense_hypergradient
from bilevel.testing.problems import Case
from bilevel.testing.runs import Factory, require_that, run_converged
from bilevel.utils import PyTree, dtype


def equals_dense_oracle(factory: Factory, case: Case) -> None:
    """Run to convergence, value and gradient are those of the dense oracle: 1e-8, float32 1e-4.

    Where the evidence claims noise or bias, the gradient may be off by that too: by 4 standard
    errors, and by twice the estimated bias.
    """
    estimate, lower = run_converged(factory, case)
    value, grad = dense_hypergradient(case.problem, case.hyper, lower.params, case.data)
    tolerance = _tolerance(estimate)
    np.testing.assert_allclose(estimate.value, value, rtol=tolerance)
    for path, leaf in jax.tree_util.tree_leaves_with_path(_excess(estimate, grad)):
        where = f"grad{jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(leaf / _size(grad), 0, atol=tolerance, err_msg=where)


def equals_finite_differences(factory: Factory, case: Case) -> None:
    """Along random directions, the slope of the solved value in float64 by central differences.

    Fourth order at ``h = 1e-2``; tolerances as for the oracle, but not below 1e-6.
    """
    estimate, lower = run_converged(factory, case)
    rng, h = np.random.default_rng(0), 1e-2
    for _ in range(2):
        along = jax.tree.map(lambda x: rng.standard_normal(np.shape(x)), case.hyper)
        along = jax.tree.map(lambda x, size=_size(along): x / size, along)

        def value(shift: float, along: PyTree = along) -> float:
            hyper = jax.tree.map(lambda x, d: np.asarray(x, float) + shift * d, case.hyper, along)
            return dense_hypergradient(case.problem, hyper, lower.params, case.data)[0]

        near, far = value(h) - value(-h), value(2 * h) - value(-2 * h)
        slope = (8 * near - far) / (12 * h)
        got = _dot(estimate.grad, along)
        slack = _dot(_allowed(estimate), jax.tree.map(np.abs, along))
        tolerance = slack + max(_tolerance(estimate), 1e-6) * _size(estimate.grad)
        np.testing.assert_allclose(got, slope, rtol=0, atol=tolerance, err_msg=f"along {along}")


def converges_at_its_rate(factory: Factory, case: Case) -> None:
    """The error after K steps falls as ``rho^K``, up to the factor K of unrolled derivatives.

    ``rho = 1 - step_size mu``, ``mu`` the smallest inner curvature. K is fixed, one program; the
    step size is set so that ``rho^K`` is 1e-2 and then 1e-4. The error must fall as much, up to a
    factor of 2 for K and 2 for modes that are still dying out, or to what the evidence admits.
    """
    _, lower = run_converged(factory, case)
    _, grad = dense_hypergradient(case.problem, case.hyper, lower.params, case.data)
    mu, _ = dense_curvature(case.problem, case.hyper, lower.params, case.data)
    errors = []
    for left in (1e-2, 1e-4):
        estimate, _ = run_converged(factory, case, (1 - left ** (1 / case.steps)) / mu)
        errors.append(_size(_excess(estimate, grad)) / _size(grad))
    early, late = errors
    require_that(
        late <= 4 * 1e-2 * early + _tolerance(estimate),
        f"the error fell from {early:.2g} to {late:.2g} while rho^K fell a hundredfold",
    )
    require_that(early < 1, f"the error is {early:.2g} where rho^K is 1e-2")


def _tolerance(estimate: Estimate) -> float:
    return 1e-8 if dtype(estimate.grad) == jnp.float64 else 1e-4


def _excess(estimate: Estimate, grad: PyTree) -> PyTree:
    """By how much the gradient is further off than its evidence admits."""
    error = jax.tree.map(lambda a, b: np.abs(np.asarray(a, float) - b), estimate.grad, grad)
    return jax.tree.map(lambda e, a: np.maximum(e - a, 0), error, _allowed(estimate))


def _allowed(estimate: Estimate) -> PyTree:
    """How far the gradient may be off by what the estimate itself reports."""
    claims = ((4, estimate.evidence.standard_error), (2, estimate.evidence.bias))
    total = jax.tree.map(np.zeros_like, estimate.grad)
    for times, claim in claims:
        if claim is not None:
            total = jax.tree.map(lambda t, c, n=times: t + n * np.abs(c), total, claim)
    return total


def _dot(a: PyTree, b: PyTree) -> float:
    products = jax.tree.map(lambda x, y: np.sum(np.asarray(x, float) * y), a, b)
    return float(sum(jax.tree.leaves(products)))


def _size(tree: PyTree) -> float:
    return _dot(tree, tree) ** 0.5

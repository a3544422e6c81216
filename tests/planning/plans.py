"""Plans for the planner's tests, their errors in real runs and by exact moments."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.noise import Ridge
from bilevel.noise.hypergradients import error
from bilevel.noise.moments import rules

RIDGE, LOGISTIC = bl.testing.ridge(seed=0), bl.testing.logistic(seed=0)
LONGEST = 700  # steps of the exact recursion that plans for ridge regression are tested with


def planned(case, **settings):
    return bl.plan(case.problem, case.hyper, case.params, case.data, **settings)


def only(plan, *sizes, **settings):
    """The same planner with some of its batch sizes, and other settings."""
    problem = plan.planner.problem
    problem = problem._replace(limits={size: problem.limits[size] for size in sizes})
    return replace(plan.planner, problem=problem, **settings)


def measured(case, plan, runs, seed=0):
    """Relative root mean square error of real runs in float32, and its standard error."""
    hyper, params, data = jax.tree.map(jnp.asarray, (case.hyper, case.params, case.data))

    @jax.jit
    def grads(keys):
        def one(key):
            arguments = case.problem, plan.estimator, hyper, params, data, key
            estimate, _ = bl.hypergradient(*arguments)
            return ravel_pytree(estimate.grad)[0]

        return jax.vmap(one)(keys)

    found = np.asarray(grads(jax.random.split(jax.random.key(seed), runs)), float)
    exact = ravel_pytree(plan.exact)[0]
    squares = np.sum((found - exact) ** 2, 1) / np.sum(np.square(exact))
    size = math.sqrt(squares.mean())
    return size, squares.std(ddof=1) / math.sqrt(runs) / (2 * size)


def _products(moments, Q):
    """The variance of ``u' Q E_j`` as if both were normal, over all j, read at the average."""
    u, E = moments.mean_x[-1], moments.mean_d[:, -1]
    xx = moments.xx[-1, :, -1] - jnp.outer(u, u)
    xd = moments.xd[:, -1, :, -1] - u[:, None] * E[:, None, :]
    dd = moments.dd[:, -1, :, -1] - E[:, :, None] * E[:, None, :]
    return jnp.sum((Q @ xx @ Q) * dd) + jnp.sum((Q @ xd) * (Q @ xd).swapaxes(1, 2))


@partial(jax.jit, static_argnames=("momentum", "nesterov"))
def _exact(process, outer, eta, steps, start, window, *, momentum, nesterov):
    """Root mean square error of ``Forward(SGD(eta), steps, start, window)``, by exact moments."""
    k = jnp.arange(LONGEST)
    rule = rules.sgd(jnp.full(LONGEST, eta), momentum, nesterov)
    rule = rules.averaged(rule, jnp.where(k >= LONGEST - window, 1 / window, 0.0))
    slots = 2 if momentum is None else 3
    first = process.start(jnp.zeros(process.curvature.shape[0]), slots=slots)

    def advance(now, at):
        k, rule = at
        # The run begins late, so that every length is one program.
        now = jax.tree.map(partial(jnp.where, k <= LONGEST - steps), first, now)
        begins = k == LONGEST - steps + start
        now = jax.tree.map(partial(jnp.where, begins), process.restart(now), now)
        return process.step(now, rule), None

    last, _ = jax.lax.scan(advance, first, (k, rule))
    gradient, Q = outer
    found = error.predict(last, process.derivative, gradient, Q, slot=-1)
    total = jnp.sum(found.bias**2) + jnp.sum(found.standard_deviation**2) + _products(last, Q)
    return jnp.sqrt(total) / jnp.linalg.norm(found.exact)


def exact_error(candidate, momentum=None, nesterov=False, sampling="iid"):
    """Of a candidate on the ridge problem, from :class:`bilevel.noise.Ridge`."""
    (A, b), (V, c) = RIDGE.data.inner, RIDGE.data.outer
    penalty = np.exp(RIDGE.hyper)
    batches = {"batch_size": candidate.batch_size, "sampling": sampling}
    process = Ridge.from_data(A, b, penalty, np.diag(penalty), **batches)
    outer = V.T @ (V @ process.solution - c) / len(c), V.T @ V / len(c)
    one = candidate.step_size, candidate.steps, candidate.start, candidate.window
    return float(_exact(process, outer, *one, momentum=momentum, nesterov=nesterov))

"""The annotations of the library hold at run time: dtypes, shapes and trees of one structure."""

import os
import subprocess
import sys
from pathlib import Path

from tests.marks import quick_cases

ROOT = Path(__file__).resolve().parents[2]

# A process of its own: the hook rewrites modules as they are imported.
PROGRAM = """
import sys

import jax
import jaxtyping

# Fields of nodes are not checked: JAX rebuilds nodes around batches, shapes and placeholders.
def checked(fn):
    import beartype
    return fn if isinstance(fn, type) or fn.__name__ == "__init__" else beartype.beartype(fn)

sys.modules["checker"] = sys
sys.checked = checked
dtype = sys.argv[1]
jax.config.update("jax_enable_x64", dtype == "float64")
rooms = ["utils", "core", "spaces", "solvers", "estimators"]
with jaxtyping.install_import_hook([f"bilevel.{room}" for room in rooms], "checker.checked"):
    import bilevel as bl

import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(0).normal(size=(12, 3)).astype(dtype)
y = X @ np.ones(3, dtype)

def inner(w, h, batch):
    X, y = batch
    return jnp.mean((X @ w["w"] - y) ** 2) / 2 + jnp.exp(h) * jnp.sum(w["w"] ** 2) / 2

def outer(w, h, batch):
    X, y = batch
    return jnp.mean((X @ w["w"] - y) ** 2) / 2

problem = bl.Problem(inner, outer, quadratic=True)
data = bl.Data(inner=(X[:8], y[:8]), outer=(X[8:], y[8:]))
hyper, params = jnp.asarray(-1.0, dtype), {"w": jnp.zeros(3, dtype)}
sgd, key = bl.SGD(0.1, batch_size=4, momentum=0.5, sampling="epoch"), jax.random.key(0)
decay = bl.SGD(bl.Decay(0.1, 0.5), batch_size=4)
for estimator in (
    bl.ClosedForm(), bl.Implicit(bl.LBFGS(), 5), bl.Implicit(bl.Newton(tol=1e-3), 2, bias=True),
    bl.Implicit(bl.Direct(), 1), bl.Forward(sgd, 4, average=2, cross=True), bl.Reverse(decay, 4),
    bl.Forward(bl.SVRG(0.1), 3, directions=2), bl.Reverse(bl.SAGA(0.1), 5, memory="checkpoint"),
    bl.Replicated(bl.Reverse(sgd, 3), 2), bl.Richardson(bl.Reverse(bl.SGD(0.1), 3)),
    bl.OneStep(sgd, 4), bl.Penalty(bl.GradientDescent(0.1), 3), bl.Evolution(sgd, 2, pairs=2),
    bl.PES(sgd, 2, pairs=2), bl.UORO(sgd, 3), bl.Auto(), bl.Predicted(bl.Reverse(bl.SGD(0.1), 2)),
):
    # Calls are checked while they are traced, so none of these is compiled.
    def twice(hyper, params, key):
        _, state = bl.hypergradient(problem, estimator, hyper, params, data, key)
        return bl.hypergradient(problem, estimator, hyper, params, data, key, state=state)[0]

    estimate = jax.eval_shape(twice, hyper, params, key)
    assert estimate.grad.dtype == dtype and estimate.grad.shape == (), estimator
estimate, _ = bl.hypergradient(problem, bl.ClosedForm(), hyper, params, data, key)
assert np.isfinite(estimate.grad)
bl.solve(problem, sgd, -1.0, params, data, key, steps=2)

def refused(fn, *arguments):
    try:
        fn(*arguments)
    except jaxtyping.TypeCheckError:
        return True

from bilevel.solvers.sampling import take_rows
from bilevel.utils import axpy, descend
assert refused(axpy, 1.0, jnp.arange(3), jnp.ones(3))  # integers are no direction
assert refused(take_rows, jnp.ones(3), jnp.ones(2))  # nor are floats row numbers
assert refused(descend, 1.0, {"w": jnp.ones(3)}, jnp.ones(3))  # trees of two structures
"""


@quick_cases(1, "dtype", ["float32", "float64"])
def test_annotations_hold_at_run_time(dtype: str) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dtype],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_jaxtyping_the_types_are_plain() -> None:
    program = """
import sys
sys.modules["jaxtyping"] = None
import bilevel, jax
from bilevel.utils.types import Array, Float, PyTree
assert Float[Array, "n d"] is jax.Array
assert PyTree[Float[Array, "..."]] is PyTree
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)

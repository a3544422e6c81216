"""What the two verbs accept: a mistaken argument is named at once, before anything is traced."""

import inspect

import jax
import jax.numpy as jnp

from bilevel.core.problem import Data, Problem
from bilevel.core.stream import Stream

_PARTS = {
    "solver": (("init", "step"), "a solver such as bl.SGD(step_size=0.1)"),
    "linear": (("solve",), "a linear solver such as bl.CG(tol=1e-6)"),
}


def require_arguments(problem: object, estimator: object, data: object, key: object) -> None:
    """Raise ``TypeError`` for an argument of the wrong kind: swapped, missing or not yet built."""
    if not isinstance(problem, Problem):
        raise TypeError(_wrong("problem", problem, "bl.Problem(inner, outer)"))
    _require_estimator(estimator)
    if not isinstance(data, Data):
        raise TypeError(_wrong("data", data, "bl.Data(inner=..., outer=...)"))
    for level in ("inner", "outer"):
        if isinstance(getattr(data, level), Stream):
            raise TypeError(
                f"data.{level} is a Stream, from which bl.tune reads a block for every outer step. "
                "Here give one block: stream.block(0, steps), with SGD(..., sampling='stream')."
            )
    dtype = getattr(key, "dtype", None)
    raw = dtype == jnp.uint32 and len(getattr(key, "shape", ())) > 0
    if dtype is None or not (raw or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        raise TypeError(_wrong("key", key, "a JAX random key, jax.random.key(seed)"))


def _require_estimator(estimator: object) -> None:
    example = "bl.Reverse(solver, steps=100)"
    step = getattr(estimator, "step", None)
    if isinstance(estimator, type) or not callable(step):
        raise TypeError(_wrong("estimator", estimator, f"an estimator such as {example}"))
    if len(inspect.signature(step).parameters) != 5:
        raise TypeError(
            f"estimator must be an estimator such as {example}, got {estimator!r}: if that is a "
            "solver, put it into an estimator."
        )
    for part, (methods, expected) in _PARTS.items():
        value = getattr(estimator, part, None)
        if value is not None and not all(hasattr(value, method) for method in methods):
            name = f"{type(estimator).__name__}: {part}"
            raise TypeError(_wrong(name, value, expected))


def _wrong(name: str, got: object, expected: str) -> str:
    kind = f"the class {got.__name__}" if isinstance(got, type) else type(got).__name__
    return f"{name} must be {expected}, got {kind}."

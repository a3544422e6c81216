"""One outer step is read in five files: what runs from `tune` to the end of its first block."""

import ast
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bilevel as bl

ROOM = Path(bl.__file__).parent / "tuning"
TraceFunction = Callable[[FrameType, str, Any], Any]


def _seen(x: jax.Array) -> jax.Array:
    return jnp.mean((x - 2.0) ** 2) / 2


# The inner Hessian depends on params: no question whether the step size is known to be too large.
PROBLEM = bl.Problem(
    inner=lambda w, h, x: _seen(w) + jnp.exp(h) * jnp.log(jnp.cosh(w)) + 0 * jnp.sum(x),
    outer=lambda w, h, x: _seen(w - 1.0) + 0 * jnp.sum(x),
)


def functions_of_a_step() -> dict[Path, set[int]]:
    """Return the files of the room, and the first lines of their functions, that `tune` runs."""
    called: dict[Path, set[int]] = {}

    def look(frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        """Heard of each call, of which JAX makes millions: of the others nothing is asked."""
        del event, arg
        code = frame.f_code
        if not code.co_filename.startswith(str(ROOM)):
            return None
        called.setdefault(Path(code.co_filename), set()).add(code.co_firstlineno)
        last = code.co_filename == str(ROOM / "tune.py") and code.co_name == "_run"
        return until_it_returns if last else None

    def until_it_returns(frame: FrameType, event: str, arg: object) -> TraceFunction:
        del frame, arg
        if event == "return":
            sys.settrace(None)
        return until_it_returns

    zero, data = jnp.zeros(()), bl.Data(jnp.ones(1), jnp.ones(1))
    estimator = bl.Implicit(bl.GradientDescent(step_size=0.3), steps=5)
    call = partial(bl.tune, PROBLEM, estimator, optax.adam(0.1), zero, zero, data)
    before = sys.gettrace()  # of a measurement of coverage, perhaps
    sys.settrace(look)
    try:
        call(steps=1, key=jax.random.key(0))
    finally:
        sys.settrace(before)
    return called


def code_lines(path: Path, first: set[int]) -> int:
    """Return how many lines of code the functions that begin at these lines have."""
    text = path.read_text()
    lines, kept = text.splitlines(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            documented = ast.get_docstring(node) is not None
            doc = range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
            if begin in first:
                kept |= set(range(begin, (node.end_lineno or begin) + 1))
                kept -= set(doc) if documented else set()
    return sum(lines[i - 1].strip()[:1] not in ("", "#") for i in kept)


def test_an_outer_step_is_read_in_five_files_and_350_lines() -> None:
    jax.clear_caches()  # functions that are compiled already would not be seen
    called = functions_of_a_step()
    sizes = {path.name: code_lines(path, first) for path, first in called.items()}
    assert {"tune.py", "loop.py"} <= set(sizes)
    assert len(sizes) <= 5, sizes
    assert sum(sizes.values()) <= 350, sizes

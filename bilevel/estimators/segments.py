"""A loop whose backward pass keeps few states: one per segment, and those of one segment.

Chen et al., 2016, after Griewank and Walther, 2000: with segments of about the root of the steps
both numbers are about that root, and the loop is run once more.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax

_T = TypeVar("_T")


def run_in_segments(steps: Callable[[int, _T], _T], loop: _T, n: int) -> _T:
    """Return ``loop = steps(k, loop)`` over segments of together ``n`` steps.

    ``steps`` takes the number of steps, and runs them. JAX differentiates the result in reverse.
    """
    segment = _choose_segment(n)
    whole, rest = divmod(n, segment)
    one = jax.checkpoint(partial(steps, segment), prevent_cse=False)
    loop, _ = jax.lax.scan(lambda loop, _: (one(loop), None), loop, length=whole)
    if rest:
        loop = jax.checkpoint(partial(steps, rest), prevent_cse=False)(loop)
    return loop


def _choose_segment(n: int) -> int:
    """Return a divisor of ``n`` near its root, or the root.

    A divisor leaves no rest, which would be a second copy of the steps to compile.
    """
    root = math.isqrt(n - 1) + 1
    return next((k for k in range(root, 2 * root) if n % k == 0), root)

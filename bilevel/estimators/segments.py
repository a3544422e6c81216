"""A loop whose backward pass keeps few states: segments within segments, run again when needed.

Griewank and Walther, 2000; with L levels of ``b`` segments each (Chen et al., 2016, section 4.2) a
loop of ``n = b^L`` steps keeps ``L b`` states and runs its steps forwards L times in all.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import TypeVar

import jax

_T = TypeVar("_T")
_FEW = 128  # states that two levels may keep: fewer save little, and each level costs a run
_BESIDE = 14  # states that are there anyway: carries of the loops, vectors of the evidence


def run_in_segments(steps: Callable[[int, _T], _T], loop: _T, n: int, levels: int) -> _T:
    """Return ``loop = steps(k, loop)`` over segments of together ``n`` steps.

    ``steps`` takes the number of steps, and runs them. JAX differentiates the result in reverse;
    one level keeps every state.
    """
    lengths = _choose_lengths(n, levels)
    loop = _nest(steps, lengths)(loop)
    if rest := n - math.prod(lengths):
        most = sum(lengths)
        inside = 1 if rest <= most else choose_levels(rest, most)
        last = partial(run_in_segments, steps, n=rest, levels=inside)
        loop = jax.checkpoint(last, prevent_cse=False)(loop)
    return loop


def choose_levels(n: int, most: float | None = None) -> int:
    """Return the fewest levels, two at least, that keep at most ``most`` states.

    ``None`` is what two levels keep of a few thousand steps, for more steps ``3 log2(n)`` with
    what is there anyway. Beyond ``log(n)`` levels the number of states, about
    ``levels n^(1/levels)``, grows again: there is the end.
    """
    if most is None:
        most = _FEW if n <= (_FEW // 2) ** 2 else max(3 * math.log2(n) - _BESIDE, 2 * _BESIDE)
    last = max(2, math.ceil(math.log(n)))
    return next((k for k in range(2, last) if k * n ** (1 / k) <= most), last)


def _nest(steps: Callable[[int, _T], _T], lengths: tuple[int, ...]) -> Callable[[_T], _T]:
    """Return the loop of loops; what is inside a segment is kept only while it is pulled back."""
    first, *others = lengths
    if not others:
        return partial(steps, first)
    segment = jax.checkpoint(_nest(steps, tuple(others)), prevent_cse=False)
    return lambda loop: jax.lax.scan(lambda x, _: (segment(x), None), loop, length=first)[0]


def _choose_lengths(n: int, levels: int) -> tuple[int, ...]:
    """Return one length a level, near ``n^(1/levels)``, whose product is ``n`` or little less.

    Without a rest the steps are compiled once less, or twice.
    """
    base = n ** (1 / levels)
    spread = min(max(5.0, 0.3 * base), 8.0)
    near = range(max(1, round(base - spread)), round(base + spread) + 1)
    every = combinations_with_replacement(near, levels)

    def cost(lengths: tuple[int, ...]) -> tuple[bool, int]:
        rest = n - math.prod(lengths)
        return rest > 0, rest + sum(lengths)

    return min((x for x in every if math.prod(x) <= n), key=cost)

"""The benchmark's two losses as a `bilevel` problem.

The benchmark hands over ``f(inner_var, outer_var, start, batch_size)``, which closes over the data.
Here an example is a minibatch of theirs, known by its number: a batch of one number is that
minibatch, all numbers are the whole level.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import bilevel as bl


def as_problem(
    f_inner: Callable[..., Any], f_outer: Callable[..., Any], n: int, m: int, batch_size: Any
) -> tuple[bl.Problem, bl.Data]:
    """The problem and its data; ``batch_size="full"`` makes one minibatch of each level."""
    sizes = (n, m) if batch_size == "full" else (batch_size, batch_size)
    counts = [-(-total // size) for total, size in zip((n, m), sizes, strict=True)]
    losses = [
        _loss(f, total, size, count)
        for f, total, size, count in zip((f_inner, f_outer), (n, m), sizes, counts, strict=True)
    ]
    return bl.Problem(*losses), bl.Data(*(jnp.arange(count) for count in counts))


def _loss(f: Callable[..., Any], total: int, size: int, count: int) -> Callable[..., Any]:
    def loss(inner_var: Any, outer_var: Any, numbers: Any) -> Any:
        if numbers.shape[0] == count:
            return f(inner_var, outer_var, start=0, batch_size=total)
        return f(inner_var, outer_var, start=numbers[0] * size, batch_size=size)

    return loss

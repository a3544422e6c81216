"""The recursion of moments over a whole schedule, in one compiled loop.

Against the simulation that it replaces: in ``benchmarks/moments.py`` one exact step of least
squares costs as much as a step of 0.1 to 1 times ``m n / p`` runs, one of :class:`Ridge`, which
keeps all hyperparameters apart, as 0.2 to 1 times ``m n``. It has no error bar to wait for and no
rare runs to miss: near the stability limit a sample mean underestimates the true second moment.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from bilevel.noise.moments.rules import Rule


class Process(Protocol):
    """An affine stochastic iteration whose second moments are known exactly."""

    def step(self, moments: Any, rule: Rule) -> Any:
        """Return the moments after one step of ``rule`` (``T [s, s]``, ``L [s]``)."""
        ...


def run(
    process: Process, moments: Any, rules: Rule, observe: Callable[[Any], Any]
) -> tuple[Any, Any]:
    r"""Return the last moments, and ``observe(moments)`` after each of the K steps of ``rules``.

    Parameters
    ----------
    process, moments : an :class:`Affine`, :class:`LeastSquares` or :class:`Ridge`, and its moments.
    rules : leading axis ``[K]``, from :func:`rules.sgd` and :func:`rules.averaged`.
    observe : ``moments -> `` a tree of arrays, stacked along a leading axis ``[K]``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import LeastSquares, moments, rules
    >>> A, b = jnp.array([[1.0], [2.0]]), jnp.array([1.0, 1.0])
    >>> process = LeastSquares.from_data(A, b, batch_size=1)
    >>> schedule = rules.sgd(jnp.full(30, 0.1))
    >>> last, errors = moments.run(
    ...     process, process.start(jnp.zeros(1)), schedule, lambda now: now.squared_error()
    ... )
    >>> errors.shape
    (30,)
    """

    def body(moments: Any, rule: Rule) -> tuple[Any, Any]:
        moments = process.step(moments, rule)
        return moments, observe(moments)

    return jax.lax.scan(body, moments, rules)

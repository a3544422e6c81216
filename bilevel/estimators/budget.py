"""What the evidence of an estimate may cost: how many products, over how many rows."""

from dataclasses import replace
from typing import NamedTuple

import jax
from jax import Array

from bilevel.core import Data, Problem, count_examples, draw_rows
from bilevel.utils import PyTree, size

_PRODUCTS, _FEWEST = 12, 3  # with the Hessian, of the few steps of conjugate gradients
_SHARE = 0.12  # of the gradients of the estimate itself that its evidence may cost
_TINY = 10_000  # rows times params up to which the evidence is whole: it costs microseconds
_STREAM = 2**31 - 1  # of the random sample: no step of a solver has this number
_DENSE, _NEWTON_STEPS = 64, 5  # params up to which Newton's method is dense; its steps, about
_SOLVES = 4  # by conjugate gradients that a remainder takes, over all rows
_ROWS = 64  # a Hessian of fewer rows says nothing of that of all


class Budget(NamedTuple):
    """How many ``products`` with the Hessian a remainder may take, over how many ``rows``.

    Evidence may cost an eighth of the estimate whatever the number of rows, so its products are
    fewer, and then its rows, a random sample, where the inner steps see few. With no products the
    residuals are reported and what they stand for is not, as with a model state. ``exact``: the
    whole problem is small enough to be solved. ``random``: losses have keys, and the minimiser at
    one of them is not what the params approach.
    """

    products: int
    rows: int
    total: int
    exact: bool = False
    random: bool = False

    @classmethod
    def of(
        cls, problem: Problem, solver: object, data: Data, params: PyTree, passes: int
    ) -> "Budget":
        """For an estimate that costs ``passes`` gradients on the batches of ``solver``."""
        n, d = count_examples(data.inner), size(params)
        batch = getattr(solver, "batch_size", None) or n
        gradients = _SHARE * passes * batch  # of single rows; a product costs about five halves
        if problem.evidence == "off" and not problem.is_equation:
            # A sample of so few would cost more, to draw and to compile, than all of them.
            return cls(0, n if n * d <= _TINY else min(n, _ROWS), n)
        if problem.has_state:
            return cls(0, n if n * d <= 100 * _TINY else min(n, max(int(gradients / 3), _ROWS)), n)
        full = problem.evidence == "full"
        cheap = full or n * d**2 <= 10 * _TINY or _NEWTON_STEPS * 2.5 * d * n <= gradients
        random = problem.stochastic
        exact = d <= _DENSE and cheap and problem.prox is None and not random
        if problem.is_equation:
            # Conjugate gradients need symmetry, and unknowns may belong to rows: all, or none.
            return cls(0, n, n, exact and problem.evidence != "off")
        if full:
            return cls(2 * _PRODUCTS, n, n, exact, random)
        products = int((gradients / n - 3) / (2.5 * _SOLVES))
        if exact or n * d <= _TINY or products >= _PRODUCTS:
            return cls(_PRODUCTS, n, n, exact, random)
        if products >= _FEWEST:
            return cls(products, n, n, random=random)
        rows = min(int(gradients / (6 + 2.5 * _FEWEST)), n // 2)
        if rows >= _ROWS:
            return cls(_FEWEST, rows, n, random=random)
        few = min(n, max(int(gradients / 3), _ROWS))
        return cls(0, n if n * d <= 100 * _TINY else few, n)

    @property
    def sampled(self) -> bool:
        """Whether only some of the rows are looked at."""
        return self.rows < self.total

    def hvps(self, params: PyTree) -> int:
        """Return how many products with a Hessian a remainder takes, about."""
        if self.exact:
            return _NEWTON_STEPS * size(params)
        return self.products * (1 if self.sampled else _SOLVES)

    def draw(self, data: Data, key: Array) -> Data:
        """Return the data, or with a random sample of its inner rows, the same for the same key."""
        n = count_examples(data.inner)
        if self.rows == n:
            return data
        chosen = draw_rows(jax.random.fold_in(key, _STREAM), self.rows, n)
        return replace(data, inner=jax.tree.map(lambda x: x[chosen], data.inner))

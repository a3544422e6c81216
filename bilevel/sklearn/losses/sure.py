r"""Monte-Carlo SURE of the lasso and the elastic net: degrees of freedom by one more fit.

    value = |y - f(y)|^2 / n - v + 2 v df / n,    df = 1 + mean_k e_k . (f(y + t e_k) - f(y)) / t

f the fitted values, v the known variance of the noise, ``e_k`` random signs about their mean, ``t``
the size of the probe; the 1 is the intercept. A difference over a finite t is smooth enough to
descend, where the exact degrees of freedom, the number of columns in use, jump (Ramani, Blu, Unser,
2008; Deledalle, Vaiter, Fadili, Peyre, 2014, whose t this is). In terms of folds: each fit is one
whose held-out "loss" is its part of the sum, linear or quadratic in the coefficients.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics, HeldLoss, RowFold

PROBES = 4


class ProbeFold(RowFold):
    """A fit to all rows, whose held-out loss is ``sum a (y - f)^2 + b . f + c``."""

    part: tuple[np.ndarray, np.ndarray, float]  # a [n], b [n], c

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> HeldLoss:
        """Return the part of the sum, and its slope."""
        (a, b, c), fitted = self.part, self.image(support, w)
        error = self.y - fitted
        value = float(a @ error**2 + b @ fitted) + c
        return HeldLoss(value, self.differentiate(support, b - 2 * a * error))


def make_probes(
    X: Matrix,
    y: np.ndarray,
    weight: np.ndarray,
    centred: bool,
    variance: float,
    random: np.random.RandomState,
) -> Callable[[int | None], FoldQuadratics]:
    """Return the fits of SURE as the folds of one problem; ``X [n, d]`` dense or CSR, ``y [n]``.

    ``variance``: of the noise of a row of weight 1; that of one of weight s is 1 / s of it.
    """
    n, none = int(np.sum(weight > 0)), np.zeros(len(y))
    s = weight * n / weight.sum()  # rows times the root of it have noise of one variance
    root, variance = np.sqrt(s), variance * n / weight.sum()
    if isinstance(X, np.ndarray):
        X = X - s @ X / n if centred else X
        by_column: Any = np.asfortranarray(X)
    else:
        by_column = X.tocsc()
    signs = random.choice([-1.0, 1.0], size=(PROBES, len(y))) * (s > 0)
    if centred:
        signs = signs - np.outer(signs @ root, root) / n
    size = 2 * np.sqrt(variance) / n**0.3
    moves = size * signs / np.where(s > 0, root, 1)

    def make_fold(target: np.ndarray, a: np.ndarray, b: np.ndarray, c: float) -> ProbeFold:
        # The value is the mean of the folds' parts, so each is as many times its own.
        fold, count = ProbeFold(X, by_column, target, s, none, centred), PROBES + 1
        fold.part = count * a, count * b, count * c
        return fold

    unit = 2 * variance / (n * size * PROBES)
    constant = variance * ((2 / n if centred else 0.0) - 1)
    folds = [make_fold(y, s / n, -unit * root * signs.sum(0), constant)]
    for sign, move in zip(signs, moves, strict=True):
        folds.append(make_fold(y + move, none, unit * root * sign, 0.0))
    share = np.append(np.full(PROBES + 1, 1 / (PROBES + 1)), 0.0)
    problem = FoldQuadratics([*folds, folds[0]], share)
    return lambda _: problem

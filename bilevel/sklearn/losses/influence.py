r"""What a row adds to the slope of an outer loss of one penalty: by folds, and by a criterion.

    I_i(theta) = s_i d L(theta) / d s_i,   d I_i / d theta = s_i d^2 L / d theta d s_i

L the outer loss at log penalty ``theta``, ``s_i`` the weight of row i. In a fold that trains on it
row i moves the fit, ``s_i d w / d s_i = -H^{-1} s_i grad l_i``; where it is held out it counts in
the mean. A second draw of a row is left out by itself, not with the first one, as a weight would
be: so the influence on leave-one-out has none through the row's own part of its leverage. The
derivative in ``theta`` is a central difference: both terms are smooth closed forms.
"""

from collections.abc import Callable

import numpy as np

from bilevel.sklearn.losses.criterion_loss import CriterionPath, evaluate_loo
from bilevel.sklearn.losses.glm import GlmLoss

_STEP = 1e-3  # of theta: truncation 1e-7, rounding 1e-6 of solves to 1e-9

# Log penalty to the slope of L there, and ``I`` of the rows that count, but for what is this slope.
RowInfluence = Callable[[float], tuple[float, np.ndarray]]


def make_fold_influence(loss: GlmLoss, mean: bool = False) -> RowInfluence:
    """Return the influence of rows on folds; ``mean``: penalties beside the mean of the losses."""
    folds, link = loss.folds, loss.link
    counts = folds.train[:, -1] > 0

    def look(theta: float) -> tuple[float, np.ndarray]:
        at = loss.evaluate_to_rounding(np.array([theta]))
        z = folds.product(np.moveaxis(at.params, 0, 1))
        slope, _ = link.derive(z, folds.target)
        pull = folds.train * np.sum(slope * folds.product(loss.adjoint), 2)
        if mean:
            pull = pull - folds.train * pull.sum(0)
        apart = np.where(folds.held > 0, link.value(z, folds.target) - at.losses, 0)
        return float(at.grad[0]), ((folds.held * apart - pull) @ folds.share)[counts]

    return look


def make_criterion_influence(path: CriterionPath) -> RowInfluence:
    """Return the influence of rows on a criterion; they move residuals, leverages and the fit."""
    rows, alone = path.rows, path.criterion is evaluate_loo
    design = np.column_stack([np.sqrt(rows.ones), path.left * np.sqrt(path.values)])

    def look(theta: float) -> tuple[float, np.ndarray]:
        alpha = float(np.exp(theta))
        _, e, q = path._parts(alpha)
        terms = path.criterion(e, q, rows)
        solved = design / np.append(1.0, path.values + alpha)
        by_fit = solved @ (design.T @ terms.by_residual)
        by_inverse = solved @ (design.T @ (terms.by_freedom[:, None] * design))
        own = np.sum((terms.by_residual / 2 - by_fit) * e, 1)
        if not alone:
            own -= terms.by_freedom * (1 - q)
        return float(path(np.array([theta])).grad[0]), own + np.sum(by_inverse * solved, 1)

    return look


def differentiate_influence(look: RowInfluence, theta: float) -> tuple[float, float, np.ndarray]:
    """Return slope and curvature of the outer loss at ``theta``, and the slopes of I, ``[n]``."""
    (low, before), (high, after) = look(theta - _STEP), look(theta + _STEP)
    return (low + high) / 2, (high - low) / (2 * _STEP), (after - before) / (2 * _STEP)

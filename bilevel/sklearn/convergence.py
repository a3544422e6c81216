"""Warnings of a search whose end is not a minimum, or whose fits are not solved."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from bilevel.sklearn.search import SearchResult

_UNSOLVED = 1e-2  # of the largest slope on the way: above it a fit is none


def warn_at_bounds(found: SearchResult, kinds: int) -> None:
    """Warn where the loss still falls beyond the penalties that the search may reach.

    One penalty of many at its upper bound switches its column off, and one of two ``kinds`` at its
    lower bound leaves the column to the other: both are answers.
    """
    slope, (lower, upper) = found.evaluation.grad, found.search.bounds.T
    falls = slope > 0, slope < 0
    at = [found.theta <= lower + 1e-6, found.theta >= upper - 1e-6]
    low, high = (side & fall for side, fall in zip(at, falls, strict=True))
    low = np.flatnonzero(low.reshape(kinds, -1).all(0))
    high = np.flatnonzero(high)
    if not len(low) and len(high) < len(found.theta):
        return
    side, ones = ("smallest", low) if len(low) else ("largest", high)
    cure = (
        "The folds ask for no penalty there: nearly so fits the rows without, or a plane separates "
        "the classes. Set a penalty by what you know, if the model must be unsure elsewhere."
        if len(low)
        else "The folds prefer a constant: no column helps to predict the target."
    )
    warnings.warn(
        f"The loss on the folds still falls where {len(ones)} of {len(found.theta)} penalties end "
        f"at the {side} that the search may reach, {np.exp(found.theta[ones[0]]):.3g}. {cure}",
        ConvergenceWarning,
        stacklevel=4,
    )


def warn_if_unsolved(found: SearchResult) -> None:
    """Warn where the fits of the folds have not converged."""
    left = found.evaluation.inner_residual
    if not left <= _UNSOLVED:
        warnings.warn(
            f"The fits of the folds have not converged: {left:.1g} of the largest slope on the way "
            "is left, and cv_loss_ is not that of the penalty. Bring columns and target to about "
            "unit size, or give larger alphas.",
            ConvergenceWarning,
            stacklevel=4,
        )

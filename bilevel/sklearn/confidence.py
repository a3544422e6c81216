r"""How far another draw of the rows would move a tuned penalty.

    theta = argmin L(theta; s),   d theta / d s_i = -(d^2 L / d theta d s_i) / (d^2 L / d theta^2)
    error^2 = n / (n - 1) sum_i (u_i - mean u)^2,   u_i = s_i d theta / d s_i

the infinitesimal jackknife (Jaeckel, 1972; Efron, 1982), the sandwich of an M-estimator whose rows
count in training and held out. Rows drawn together, ``groups``, are summed first.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from sklearn.exceptions import ConvergenceWarning

from bilevel.sklearn.choice import FitData
from bilevel.sklearn.losses import RowInfluence, differentiate_influence
from bilevel.sklearn.search import SearchResult


@dataclass(frozen=True)
class PenaltyConfidence:
    """What another draw of the rows would change; ``confidence_`` of an estimator.

    Parameters
    ----------
    alpha : the tuned penalty.
    error : the standard error of its natural logarithm; infinite where it is at no minimum.

    Examples
    --------
    >>> from bilevel.sklearn import PenaltyConfidence
    >>> [round(end, 2) for end in PenaltyConfidence(1.0, 0.5).interval(0.95)]
    [0.38, 2.66]
    """

    alpha: float
    error: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the ends of an interval for the penalty, ``alpha exp(-+ z error)``."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}: give .95 for 95 %.")
        reach = float(ndtri((1 + level) / 2)) * self.error
        with np.errstate(over="ignore"):
            return float(self.alpha * np.exp(-reach)), float(self.alpha * np.exp(reach))


def require_smallest_loss(model, single: bool) -> None:
    """Validate that the penalty of ``model`` will be one, and the minimum of a smooth loss."""
    wrong = {
        f"penalty={model.penalty!r}": not single,
        f"choose={model.choose!r}": model.choose != "smallest_loss",
        f"scoring={model.scoring!r}": model.scoring is not None,
        "cv='alo'": isinstance(model.cv, str) and model.cv == "alo",
        "class_weight='balanced'": getattr(model, "class_weight", None) == "balanced",
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ValueError(
            "confidence=True is for one penalty that minimises a smooth loss of rows with weights "
            f"of their own; got {', '.join(found)}. Leave it at its default, or set "
            "confidence=False."
        )


def measure_confidence(
    look: RowInfluence, found: SearchResult, alpha: float, data: FitData
) -> PenaltyConfidence:
    """Measure it where the search ended; ``alpha`` is that penalty in its own unit."""
    theta = float(found.theta[0])
    slope, curvature, each = differentiate_influence(look, theta)
    if data.groups is not None:
        _, labels = np.unique(np.asarray(data.groups)[data.weight > 0], return_inverse=True)
        each = np.bincount(labels.ravel(), each)
    n = len(each)
    spread = np.sqrt(n / max(n - 1, 1) * np.sum((each - each.mean()) ** 2))
    error = float(spread / curvature) if curvature > 0 and n > 1 else np.inf
    inside = np.min(np.abs(found.search.bounds[0] - theta)) > 1e-6
    if not (inside and abs(slope) <= curvature * error):
        warnings.warn(
            f"No confidence in the penalty, {alpha:.3g}: it is not within a standard error of a "
            "minimum of the loss on the folds. It ends at a bound, or the descent ended early: "
            "then give a smaller tol or a larger max_iter.",
            ConvergenceWarning,
            stacklevel=4,
        )
        error = np.inf
    return PenaltyConfidence(alpha, error)

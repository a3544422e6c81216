"""From the penalties found to the fitted model: the choice by a scorer, and which fit is kept."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import check_scoring

from bilevel.sklearn.losses import Matrix, make_folds
from bilevel.sklearn.search import RESOLUTION, Evaluation, SearchResult, select_strongest

# Theta, params of a fold and the weights that it trained with: the attributes of a fitted model.
Placement = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, Any]]


class FitData(NamedTuple):
    """The arguments of ``fit``, checked; ``weight`` counts classes too, ``splits`` are of rows."""

    X: Matrix
    y: np.ndarray
    sample_weight: np.ndarray | None
    weight: np.ndarray
    splits: tuple[np.ndarray, np.ndarray] | None
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class FoldFits:
    """The fits of the folds as models of scikit-learn; ``model`` is the estimator that tunes."""

    model: Any
    data: FitData
    place: Placement

    def __post_init__(self) -> None:
        """Refuse what has no folds."""
        if self.data.splits is None:
            raise ValueError(
                "scoring and refit=False need fits that have not seen all rows, and cv="
                f"{self.model.cv!r} makes none. Give a cv of folds, or scoring=None and refit=True."
            )

    def attributes(self, theta: np.ndarray, at: Evaluation) -> Iterator[Mapping[str, Any]]:
        """Yield what :class:`Placement` makes of the fit of every fold that counts."""
        weights = self._used(0) * self.data.weight
        for pair in zip(at.params[at.share > 0], weights, strict=True):
            yield self.place(theta, *pair)

    def score(self, theta: np.ndarray, at: Evaluation) -> np.ndarray:
        """Return the scores of the folds, by the scorer of the model, ``[F]``."""
        scorer: Any = check_scoring(self.model, self.model.scoring)
        X, y, given, *_ = self.data
        require_weights(scorer, given)
        scores = []
        for attributes, held in zip(self.attributes(theta, at), self._used(1), strict=True):
            member, rows = copy(self.model), np.flatnonzero(held)
            vars(member).update(attributes)
            vars(member).pop("feature_names_in_", None)  # the rows are checked, without names
            extra = {} if given is None else {"sample_weight": given[rows]}
            scores.append(scorer(member, X[rows], y[rows], **extra))
        return np.array(scores, np.float64)

    def _used(self, side: int) -> np.ndarray:
        """Return the rows of one side of the splits that count, ``[F, n]``."""
        sides: Any = self.data.splits
        train, held = sides
        return sides[side][make_folds(train, held, self.data.weight).share[:-1] > 0]


def require_weights(scorer: Callable, weight: np.ndarray | None) -> None:
    """Validate that a scorer takes weights where there are some."""
    own = getattr(scorer, "_accept_sample_weight", None)
    takes = own() if own else "sample_weight" in signature(scorer).parameters
    if weight is not None and not takes:
        raise ValueError(
            f"scoring={scorer} takes no sample_weight, and fit was given one: the choice would "
            "ignore it. Give a scorer that takes sample_weight, or fit without."
        )


def finish_fit(model: Any, found: SearchResult, data: FitData, place: Placement) -> SearchResult:
    """Choose by the model's ``scoring``, if any, and set the fit of all rows, or the folds' mean.

    With ``scoring`` the candidates are the grid and the descent, as far as the guard allows it; of
    equal scores the strongest penalties win, and under ``choose="one_standard_error"`` scores are
    equal that differ by less than the best one's standard error over the folds.

    Raises
    ------
    ValueError : no folds; a scorer that takes no weights; scores that are nowhere finite.
    """
    if model.scoring is not None:
        found = choose_by_score(model, found, FoldFits(model, data, place))
    theta, at = found.theta, found.evaluation
    if model.refit:
        vars(model).update(place(theta, at.params[-1], data.weight))
    else:
        fits = list(FoldFits(model, data, place).attributes(theta, at))
        vars(model).update({name: np.mean([fit[name] for fit in fits], 0) for name in fits[0]})
    if hasattr(model, "predict_interval"):
        model._kept = ""
        if data.splits is not None:
            own = FoldFits(model, data, place)
            kept = data.X, data.y, data.weight, own.attributes(theta, at), own._used(1)
            model._keep_folds(*kept)
    return found


def choose_by_score(model: Any, found: SearchResult, fits: FoldFits) -> SearchResult:
    """Return the candidate with the best mean score, and the scores of all in its tables."""
    points, scores, losses = np.concatenate([found.points, found.allowed]), [], []
    share = found.evaluation.share[found.evaluation.share > 0]
    exact = getattr(found.outer, "evaluate_exactly", found.outer)
    for theta in points:
        at = exact(theta)
        scores.append(fits.score(theta, at))
        losses.append(at.losses[at.share > 0])
    scores, losses = np.array(scores), np.array(losses)
    mean = scores @ share
    mean = np.where(np.isfinite(mean), mean, -np.inf)
    best = int(np.argmax(mean))
    if not np.isfinite(mean[best]):
        raise ValueError(
            f"scoring={model.scoring!r} is not finite on some fold at every penalty. Does a fold "
            "hold out a single class, or too few rows? Give a cv with larger or stratified folds."
        )
    slack = RESOLUTION * abs(mean[best])
    if model.choose == "one_standard_error":
        slack = float(np.std(scores[best], ddof=1) / np.sqrt(len(share)))
    chosen = select_strongest(points, -mean, slack, found.search.strength)
    theta = points[chosen]
    at = exact(theta)
    return replace(
        found,
        theta=theta,
        evaluation=at,
        path=np.concatenate([found.path, theta[None]]),
        values=np.append(found.values, losses[chosen] @ share),
        points=points,
        losses=losses,
        grid=losses @ share,
        scores=scores,
        chosen=chosen,
    )

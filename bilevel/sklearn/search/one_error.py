"""The one-standard-error choice: the strongest penalties that folds do not tell from the best."""

import numpy as np

from bilevel.sklearn.search.descent import OuterFunction
from bilevel.sklearn.search.options import SearchOptions

_HALVINGS = 12


def find_one_error(outer: OuterFunction, theta: np.ndarray, search: SearchOptions) -> np.ndarray:
    """Return the strongest penalties whose loss is within one standard error of that at ``theta``.

    All penalties grow by one factor; the error is that of the mean over the folds at ``theta``
    (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).
    """
    at = outer(theta)
    losses = at.losses[at.share > 0]
    limit = float(at.value) + float(np.std(losses, ddof=1) / np.sqrt(len(losses)))
    along = np.ones(len(theta)) if search.strength is None else 1.0 * (search.strength > 0)
    room = float(np.max((search.bounds[:, 1] - theta)[along > 0]))
    good, step = 0.0, 0.5
    while good < room:
        trial = min(good + step, room)
        if float(outer(theta + trial * along).value) > limit:
            break
        good, step = trial, 2 * step
    bad = min(good + step, room)
    for _ in range(_HALVINGS if good < room else 0):
        middle = (good + bad) / 2
        if float(outer(theta + middle * along).value) > limit:
            bad = middle
        else:
            good = middle
    return theta + good * along

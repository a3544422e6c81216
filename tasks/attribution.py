r"""Data attribution: which training images made the prediction of a test image what it is.

    tau_ti = d loss_t(w(v)) / d v_i at weights v = 1,     g_t(S) = sum_{i in S} tau_ti
    LDS = mean_t spearman_S(g_t(S), loss_t(w trained on S alone))

The linear datamodelling score of Park, Georgiev, Ilyas, Leclerc, Madry, "TRAK", ICML 2023, over
random subsets S of the training rows, against real retraining.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from bilevel.estimators import innermost_estimator
from tasks.base import Task
from tasks.datasets.images import cast, images
from tasks.judges.attribution_judge import Judge, draw_attributions
from tasks.parts.networks import perceptron
from tasks.parts.weighting import Mean, Weighted, itself, linear, linear_zeros


def attribution(
    estimator: Any,
    data: str = "digits",
    *,
    hidden: int = 0,
    train: int = 300,
    test: int = 60,
    decay: float = 1e-3,
    subsets: int = 100,
    share: float = 0.5,
    runs: int = 1,
    damping: float = 0.0,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of saying what a training set without some of its rows would give.

    Parameters
    ----------
    estimator : of the attributions; its solver and steps are also those of the retraining.
    data, train, test, root, seed : as for :func:`tasks.datasets.images.images`; the test rows are
        the rows of the outer loss.
    hidden : units of one hidden layer; 0 is softmax regression, which is convex.
    decay : of the inner loss, times the squares of all params.
    subsets, share, runs : so many random subsets, of this share of the training rows, on each of
        which so many models are trained, whose mean loss is the outcome.
    damping : of the influence functions among the baselines, beside the curvature.

    Notes
    -----
    The one outer step of a run is that of the weights; what is judged are the attributions at
    weights of one, for each test row. ``lds_shortfall`` is ``1 - lds``.

    Raises
    ------
    ValueError : bad data or sizes; a share that leaves no row, or all of them; an estimator without
        solver and steps.

    Examples
    --------
    >>> import bilevel as bl
    >>> from tasks.attribution import attribution
    >>> attribution(bl.Implicit(bl.LBFGS(), steps=30), train=50, test=20).hyper.shape
    (50,)
    """
    inside = innermost_estimator(estimator)
    if not (hasattr(inside, "solver") and hasattr(inside, "steps")):
        raise ValueError(
            f"attribution retrains with the estimator's solver and steps, and "
            f"{type(inside).__name__} has none. Take Implicit, Reverse or Forward."
        )
    size = round(share * train)
    if not 0 < size < train or subsets < 2 or runs < 1:
        raise ValueError(
            f"share={share!r} of train={train} rows, subsets={subsets}, runs={runs}: a subset "
            "needs some of the rows and not all, a rank two subsets, and each of them a run."
        )
    parts = images(data, train=train, test=test, root=root, seed=seed)
    width = parts.train[0].shape[1]
    if hidden:
        model, params = perceptron((width, hidden, parts.classes), seed)
    else:
        model, params = linear, linear_zeros(width, parts.classes)
    order = np.random.RandomState(seed + 1)  # another stream than the split's
    chosen = np.stack([order.permutation(train)[:size] for _ in range(subsets)])
    judge = Judge(parts, model, params, estimator, chosen, decay, runs, damping, seed)
    (X, y), outer = parts.train, cast(*parts.test)
    return Task(
        name=f"attribution {data}",
        problem=bl.Problem(Weighted(model, itself, decay), Mean(model)),
        data=bl.Data(inner=cast(X, y, np.arange(train)), outer=outer),
        hyper=jnp.ones(train),
        params=params,
        metrics=lambda hyper, params: judge.metrics,
        baselines=judge.baselines,
        describe=_describe,
        notes=parts.notes() | {"subsets": subsets, "subset_rows": size},
        picture=partial(draw_attributions, judge),
    )


def _describe(hyper: Array) -> dict[str, float]:
    """Return how far the step moves the weight of the row that it moves most, and the least."""
    moved = np.asarray(hyper, float) - 1
    return {"smallest move of a weight": moved.min(), "largest move of a weight": moved.max()}

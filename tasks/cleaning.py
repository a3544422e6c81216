r"""Data cleaning: one weight per training example, found by the loss on a few clean ones.

    inner(w, h) = mean_i sigmoid(h_i) loss(x_i, y_i; w) + decay |w|^2     labels partly wrong
    outer(w)    = mean_i loss(x_i, y_i; w)                                labels right

Franceschi, Donini, Frasconi, Pontil, "Forward and reverse gradient-based hyperparameter
optimization", ICML 2017, section 5.1; softmax regression with an intercept.
"""

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from tasks.base import Task
from tasks.datasets.images import cast, images
from tasks.judges.cleaning_judge import CleaningJudge, describe_weights
from tasks.models.rows import RowsClassifier, make_layers
from tasks.parts.weighting import Mean, Weighted, fitter, linear, linear_zeros, predict, squashed

NOISE = ("uniform", "other", "pair")


def corrupt(
    y: np.ndarray, classes: int, noise: str, fraction: float, rng: np.random.RandomState
) -> np.ndarray:
    """Draw ``round(fraction n)`` of the labels anew, chosen at random, ``[n]``.

    ``"uniform"`` draws from all classes, so that one in ``classes`` stays right; ``"other"`` from
    the wrong ones; ``"pair"`` takes the next class, which a classifier learns as if it were right.

    Raises
    ------
    ValueError : an unknown noise, a fraction outside [0, 1].
    """
    if noise not in NOISE:
        raise ValueError(f"noise={noise!r} must be one of {', '.join(NOISE)}.")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction!r} must be a share of the labels, between 0 and 1.")
    chosen = rng.permutation(len(y))[: round(fraction * len(y))]
    low = {"uniform": 0, "other": 1, "pair": 1}[noise]
    high = 2 if noise == "pair" else classes
    out = y.copy()
    out[chosen] = (y[chosen] + rng.randint(low, high, len(chosen))) % classes
    return out


def cleaning(
    data: str = "digits",
    noise: str = "pair",
    fraction: float = 0.45,
    *,
    train: int = 1000,
    validation: int = 100,
    test: int | None = None,
    pool: int = 1,
    decay: float = 1e-4,
    refit_steps: int = 600,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of weighting training examples of which some have wrong labels.

    Parameters
    ----------
    data, train, validation, test, pool, root, seed : as for :func:`tasks.datasets.images.images`.
    noise, fraction : as for :func:`corrupt`; only training labels are touched, once.
    decay : of the inner loss, times the squares of all weights and intercepts.
    refit_steps : of heavy ball (step 0.1, momentum 0.9) in every fit for the table.

    Notes
    -----
    ``test_error`` and ``test_accuracy`` belong to a fit on weighted training rows and validation
    rows together, ``inner_accuracy`` to the inner model. An example is flagged if its weight is
    below half of the largest; ``f1`` compares the flags with the labels that are really wrong.

    Raises
    ------
    ValueError : bad data, sizes or noise.

    Examples
    --------
    >>> from tasks.cleaning import cleaning
    >>> cleaning("digits", train=200, validation=50).hyper.shape
    (200,)
    """
    sizes = {"train": train, "validation": validation, "test": test, "pool": pool}
    parts = images(data, **sizes, root=root, seed=seed)
    rng = np.random.RandomState(seed + 1)  # another stream than the split's
    X, y = parts.train
    labels = corrupt(y, parts.classes, noise, fraction, rng)
    start, key = linear_zeros(X.shape[1], parts.classes), jax.random.key(0)
    refit = fitter(linear, bl.SGD(step_size=0.1, momentum=0.9), refit_steps, decay)
    judge = CleaningJudge(
        parts,
        labels,
        lambda weights, rows: refit(start, cast(weights)[0], rows, key),
        lambda found, X: predict(linear(found, jnp.asarray(X))),
    )
    return Task(
        name=f"cleaning {data}",
        problem=bl.Problem(Weighted(linear, squashed, decay), Mean(linear)),
        data=bl.Data(inner=cast(X, labels, np.arange(len(y))), outer=cast(*parts.validation)),
        hyper=jnp.zeros(len(y)),
        params=start,
        metrics=lambda hyper, params: (
            judge.metrics(hyper) | {"inner_accuracy": judge.accuracy(params)}
        ),
        baselines=judge.baselines,
        describe=describe_weights,
        model=lambda hyper, _: RowsClassifier(
            parts.pixels,
            make_layers(judge.fit(np.asarray(jax.nn.sigmoid(hyper)))),
            parts.labels,
        ),
        notes=parts.notes()
        | {"noise": noise, "fraction": fraction, "wrong_labels": int(np.sum(labels != y))},
        picture=judge.draw,
    )

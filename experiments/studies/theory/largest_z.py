"""The largest of many correlated z scores, and how large chance makes it.

A mean of runs is compared with an exact value at many steps. Neighbouring steps share their runs,
and squared errors are skewed, so neither independent nor normal scores say how large the largest
should be. Its null distribution is that of resampled runs: with ``s* = mean of R runs drawn with
replacement``, all steps of a run together,

    t* = (mean* - mean) sqrt(R) / sd*,     max over the steps of |t*|.

Source: Hall, "The bootstrap and Edgeworth expansion", Springer 1992, 3.10 (studentised bootstrap).
"""

import numpy as np

from experiments.studies import base


def resample_largest(samples: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``draws`` values of the largest |t*| over the columns of ``samples [R, K]``.

    Raises
    ------
    ValueError : fewer than two runs, whose deviation is not known.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> null = resample_largest(rng.standard_normal((200, 20)), 2000, rng)
    >>> bool(2.5 < np.quantile(null, 0.9) < 3.2)  # 2.79 for 20 independent normal scores
    True
    """
    runs = len(samples)
    if runs < 2:
        raise ValueError(
            f"resample_largest: {runs} run has no standard deviation; give at least two."
        )
    if not samples.shape[1]:
        return np.zeros(draws)
    centred = (samples - samples.mean(0)) / samples.std(0)  # units of no weight in t*
    counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=draws)
    mean = counts @ centred / runs
    variance = (counts @ centred**2 / runs - mean**2) * runs / (runs - 1)
    return np.abs(mean * np.sqrt(runs / variance)).max(1)


def judge_largest(
    found: list[tuple[int, float, int]], nulls: list[np.ndarray]
) -> tuple[base.Table, base.Check]:
    """Return a row for each ``(seed, largest |z|, number compared)``, and the check of them all.

    A seed passes by chance alone with the probability ``p`` of its row or more; the check asks that
    the largest of all seeds is below the 99.9 % quantile of its own null distribution.
    """
    rows = [
        {
            "seed": seed,
            "steps compared": compared,
            "largest |z|": largest,
            "null median": float(np.median(null)),
            "null 95 %": float(np.quantile(null, 0.95)),
            "p": float((null >= largest).mean()),
        }
        for (seed, largest, compared), null in zip(found, nulls, strict=True)
    ]
    overall = np.max(nulls, axis=0)
    worst, count = (
        max(row["largest |z|"] for row in rows),
        sum(row["steps compared"] for row in rows),
    )
    name = f"largest |z| of {count} comparisons, {len(rows)} seeds"
    return rows, base.below(name, worst, float(np.quantile(overall, 0.999)))

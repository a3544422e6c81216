"""From raw columns to the standardised design matrix that a linear model sees."""

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import PolynomialFeatures

SAME = (
    1e-10  # a correlation this close to 1 is a duplicate, a relative spread this small a constant
)
BLOCK = 1024


@dataclass(frozen=True)
class Features:
    """Standardisation and, for degree 2, all squares and products; fitted on given rows only.

    Raw columns are standardised, clipped to ``+-clip`` standard deviations if asked, and expanded;
    ``transform(X)`` is ``[n, d]``: each column has mean 0 and variance 1 over the fitted rows.
    Columns that are constant, or equal to an earlier one up to sign, are left out; a linear model
    cannot tell them apart, and ``dropped`` names them. ``powers [d, raw]`` says how often each raw
    column enters, ``inputs`` which column of the table it came from, one for each that enters.
    """

    raw: "Scale"
    clip: float
    expansion: PolynomialFeatures
    kept: np.ndarray
    scale: "Scale"
    names: tuple[str, ...]
    powers: np.ndarray
    dropped: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        X: np.ndarray,
        names: tuple[str, ...],
        degree: int = 1,
        clip: float | None = None,
        every: np.ndarray | None = None,
        inputs: tuple[str, ...] | None = None,
    ) -> "Features":
        """Learn scales from the rows of ``X``; which columns exist, from ``every`` row there is.

        A column that varies in ``every`` (by default ``X``), but not in ``X``, stays, as zeros on
        the rows of ``X``: all seeds of a data set have the same columns, hence one program.

        ``inputs`` names the column of a table that each column came from, by default itself.

        Raises
        ------
        ValueError : a degree other than 1 or 2; ``clip`` not positive; no column that varies.
        """
        if degree not in (1, 2):
            raise ValueError(
                f"degree={degree!r} must be 1 (the columns) or 2 (also their products)."
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"clip={clip!r} must be a positive number of standard deviations.")
        raw, bound = Scale.fit(X), np.inf if clip is None else clip
        expansion = PolynomialFeatures(degree, include_bias=False).fit(X[:1])
        expanded = np.asarray(expansion.transform(raw(X).clip(-bound, bound)))
        titles = [str(name) for name in expansion.get_feature_names_out(list(names))]
        scale = Scale.fit(expanded)
        if every is not None:
            expanded = np.asarray(expansion.transform(raw(every).clip(-bound, bound)))
        kept = _distinct(expanded)
        if not scale.spread[kept].any():
            raise ValueError(
                f"all {X.shape[1]} feature columns are constant over the {len(X)} training rows: "
                "there is nothing to learn from."
            )
        return cls(
            raw,
            bound,
            expansion,
            kept,
            Scale(scale.mean[kept], scale.spread[kept]),
            tuple(titles[j] for j in kept),
            expansion.powers_[kept],
            tuple(name for j, name in enumerate(titles) if j not in set(kept.tolist())),
            names if inputs is None else inputs,
        )

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return the design matrix of any rows, ``[n, d]``."""
        expanded = self.expansion.transform(self.raw(X).clip(-self.clip, self.clip))
        return self.scale(np.asarray(expanded)[:, self.kept])


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of columns, ``[d]``; spread 0 where a column is constant."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray) -> "Scale":
        """Learn the scale of the rows of ``X``."""
        mean, spread = X.mean(0), X.std(0)
        return cls(mean, np.where(spread > SAME * np.abs(X).max(0), spread, 0.0))

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return centred columns in units of their spread; a constant one is 0 where fitted."""
        return (X - self.mean) / np.where(self.spread > 0, self.spread, 1.0)


def _distinct(X: np.ndarray) -> np.ndarray:
    """Return the columns that vary and that no earlier one equals up to shift, scale, sign."""
    scale = Scale.fit(X)
    varies = np.flatnonzero(scale.spread)
    Z, new = scale(X)[:, varies], np.ones(varies.size, bool)
    for first in range(0, varies.size, BLOCK):  # thousands of genes: not all pairs at once
        block = Z[:, first : first + BLOCK]
        correlation = np.abs(Z[:, : first + BLOCK].T @ block) / len(Z)
        earlier = np.arange(correlation.shape[0])[:, None] < first + np.arange(block.shape[1])
        new[first : first + BLOCK] = ~((correlation > 1 - SAME) & earlier).any(axis=0)
    return varies[new]

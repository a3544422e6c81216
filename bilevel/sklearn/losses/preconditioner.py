"""One preconditioner for all folds of a generalised linear model."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bilevel.sklearn.losses.glm_folds import GlmFolds
from bilevel.sklearn.losses.links import Link

NEAR = 1e-12  # of a column's own curvature: what is below counts as none
_DENSE = 1000  # columns up to which the preconditioner is factorised


class Preconditioner:
    """An approximation of the inverse Hessian of all folds, made again when it is stale."""

    def __init__(self, folds: GlmFolds, link: Link) -> None:
        """Nothing is known yet."""
        self.folds, self.link = folds, link
        self.hessian: np.ndarray | None = None
        self.known: dict = {}
        d, count, outputs = folds.shape
        self.factorised = folds.dense and d <= _DENSE
        self.price = d / (2 * count * outputs) if self.factorised else 1.0  # in products
        self.wasted = np.inf

    def prepare(self, curvature: np.ndarray, strength: np.ndarray) -> None:
        """Take the curvature of a :class:`Link` if that pays, and penalties ``[d + 1, F, T]``."""
        if self.hessian is None or self.wasted > self.price:
            weight = np.mean(self.folds.train * self.link.diagonal(curvature), 1)
            make = self.folds.weigh_products if self.factorised else self.folds.weigh_squares
            self.hessian, self.wasted = make(weight), 0.0
        elif strength is self.strength:
            return
        self.strength, self.known = strength, {}
        if not self.factorised:
            self.diagonal = np.maximum(self.hessian[:, None, None] + strength, 1e-300)
            return
        common = strength.mean(1)
        same = np.allclose(common, common[:, :1], rtol=1e-9)
        own = NEAR * np.diag(self.hessian)  # or rounding may leave it indefinite
        self.factors = [
            cho_factor(self.hessian + np.diag(column + own), lower=True, check_finite=False)[0]
            for column in (common[:, :1] if same else common).T
        ]

    def __call__(self, r: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Apply to the folds ``live``, ``[d + 1, live, T]``; outputs without columns keep none."""
        image = self._apply(r, live)
        image[:-1, :, self.folds.sloped :] = 0
        return image

    def _apply(self, r: np.ndarray, live: np.ndarray) -> np.ndarray:
        if not self.factorised:
            return r / self.diagonal[:, live].astype(r.dtype, copy=False)
        factors = self.known.setdefault(
            r.dtype, [(factor.astype(r.dtype, copy=False), True) for factor in self.factors]
        )
        if len(factors) == 1:
            flat = cho_solve(factors[0], r.reshape(len(r), -1), check_finite=False)
            return flat.reshape(r.shape)
        parts = [
            cho_solve(factor, r[:, :, k], check_finite=False) for k, factor in enumerate(factors)
        ]
        return np.stack(parts, 2)

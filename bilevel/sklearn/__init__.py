"""Estimators for scikit-learn's users that tune their own penalties by hypergradient.

Penalised models have losses of their own (``losses/``), which SciPy descends (``search/``);
``BilevelSearchCV`` (``search_cv.py``) runs ``tune`` on a user's problem.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "bilevel.sklearn needs scikit-learn, which bilevel itself does not: "
        'pip install "bilevel[sklearn]".'
    ) from error

from typing import Any as _Any

from bilevel.sklearn.cleaner import DataCleaner
from bilevel.sklearn.confidence import PenaltyConfidence
from bilevel.sklearn.elastic_net import HypergradElasticNet
from bilevel.sklearn.group_lasso import HypergradGroupLasso
from bilevel.sklearn.huber import HypergradHuberRegressor
from bilevel.sklearn.kernel import HypergradKernelRidge
from bilevel.sklearn.lasso import HypergradLasso
from bilevel.sklearn.logistic import HypergradLogisticRegression
from bilevel.sklearn.losses import compute_gcv, compute_sure, leave_one_out
from bilevel.sklearn.ridge import HypergradRidge
from bilevel.sklearn.search_cv import BilevelSearchCV
from bilevel.sklearn.sparse_logistic import HypergradSparseLogisticRegression
from bilevel.sklearn.tweedie import (
    HypergradGammaRegressor,
    HypergradPoissonRegressor,
    HypergradTweedieRegressor,
)
from bilevel.utils import resolve_renamed as _renamed

__all__ = [
    "BilevelSearchCV",
    "DataCleaner",
    "HypergradElasticNet",
    "HypergradGammaRegressor",
    "HypergradGroupLasso",
    "HypergradHuberRegressor",
    "HypergradKernelRidge",
    "HypergradLasso",
    "HypergradLogisticRegression",
    "HypergradPoissonRegressor",
    "HypergradRidge",
    "HypergradSparseLogisticRegression",
    "HypergradTweedieRegressor",
    "PenaltyConfidence",
    "compute_gcv",
    "compute_sure",
    "leave_one_out",
]

_RENAMED = {
    "generalised": ("compute_gcv", compute_gcv),
    "sure": ("compute_sure", compute_sure),
}


def __getattr__(name: str) -> _Any:
    """Names of the release before, with a warning."""
    return _renamed(__name__, _RENAMED, name)

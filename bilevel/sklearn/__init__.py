"""Estimators for scikit-learn's users that tune their own penalties by hypergradient."""

from bilevel.sklearn.cleaner import DataCleaner
from bilevel.sklearn.kernel import HypergradKernelRidge
from bilevel.sklearn.lasso import HypergradElasticNet, HypergradLasso
from bilevel.sklearn.logistic import HypergradLogisticRegression
from bilevel.sklearn.losses import generalised, leave_one_out, sure
from bilevel.sklearn.ridge import HypergradRidge
from bilevel.sklearn.search_cv import BilevelSearchCV

__all__ = [
    "BilevelSearchCV",
    "DataCleaner",
    "HypergradElasticNet",
    "HypergradKernelRidge",
    "HypergradLasso",
    "HypergradLogisticRegression",
    "HypergradRidge",
    "generalised",
    "leave_one_out",
    "sure",
]

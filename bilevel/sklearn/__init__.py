"""Estimators for scikit-learn's users that tune their own penalties by hypergradient."""

from bilevel.sklearn.logistic import HypergradLogisticRegression as HypergradLogisticRegression
from bilevel.sklearn.ridge import HypergradRidge as HypergradRidge

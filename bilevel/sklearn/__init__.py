"""Estimators for scikit-learn's users that tune their own penalties by hypergradient."""

from bilevel.sklearn.cleaner import DataCleaner as DataCleaner
from bilevel.sklearn.criteria import generalised as generalised
from bilevel.sklearn.criteria import leave_one_out as leave_one_out
from bilevel.sklearn.criteria import sure as sure
from bilevel.sklearn.kernel import HypergradKernelRidge as HypergradKernelRidge
from bilevel.sklearn.lasso import HypergradElasticNet as HypergradElasticNet
from bilevel.sklearn.lasso import HypergradLasso as HypergradLasso
from bilevel.sklearn.logistic import HypergradLogisticRegression as HypergradLogisticRegression
from bilevel.sklearn.ridge import HypergradRidge as HypergradRidge
from bilevel.sklearn.search import BilevelSearchCV as BilevelSearchCV

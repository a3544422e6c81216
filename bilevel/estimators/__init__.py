"""Hypergradient estimators: one method, one file."""

from bilevel.estimators.base import Estimator as Estimator
from bilevel.estimators.forward import Forward as Forward
from bilevel.estimators.implicit import Implicit as Implicit
from bilevel.estimators.reverse import Reverse as Reverse

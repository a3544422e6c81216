"""Bilevel hyperparameter optimisation: hypergradients that come with evidence."""

from bilevel import testing as testing
from bilevel.check import check as check
from bilevel.check_report import CheckReport as CheckReport
from bilevel.diagnosis import DivergenceWarning as DivergenceWarning
from bilevel.estimate import Counts as Counts
from bilevel.estimate import Estimate as Estimate
from bilevel.estimate import Evidence as Evidence
from bilevel.estimate import Lower as Lower
from bilevel.estimators import Forward as Forward
from bilevel.estimators import Implicit as Implicit
from bilevel.estimators import Reverse as Reverse
from bilevel.hypergradient import hypergradient as hypergradient
from bilevel.linear import CG as CG
from bilevel.problem import Data as Data
from bilevel.problem import Problem as Problem
from bilevel.schedules import InverseTime as InverseTime
from bilevel.solvers import SGD as SGD
from bilevel.solvers import GradientDescent as GradientDescent
from bilevel.solvers import Optax as Optax
from bilevel.solvers import solve as solve
from bilevel.transform import transform as transform
from bilevel.tune import Result as Result
from bilevel.tune import tune as tune

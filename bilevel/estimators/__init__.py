"""Hypergradient estimators: one method, one file."""

from bilevel.estimators.auto import Auto as Auto
from bilevel.estimators.base import Estimator as Estimator
from bilevel.estimators.closed_form import ClosedForm as ClosedForm
from bilevel.estimators.evolution import Evolution as Evolution
from bilevel.estimators.forward import Forward as Forward
from bilevel.estimators.implicit import Implicit as Implicit
from bilevel.estimators.one_step import OneStep as OneStep
from bilevel.estimators.penalty import Penalty as Penalty
from bilevel.estimators.pes import PES as PES
from bilevel.estimators.predicted import Predicted as Predicted
from bilevel.estimators.replicated import Replicated as Replicated
from bilevel.estimators.reverse import Reverse as Reverse
from bilevel.estimators.richardson import Richardson as Richardson
from bilevel.estimators.sampled import Sampled as Sampled
from bilevel.estimators.uoro import UORO as UORO

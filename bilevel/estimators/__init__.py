"""Hypergradient estimators: one method, one file."""

from bilevel.core import Estimator
from bilevel.estimators.auto import Auto
from bilevel.estimators.closed_form import ClosedForm
from bilevel.estimators.evolution import Evolution
from bilevel.estimators.forward import Forward
from bilevel.estimators.implicit import Implicit
from bilevel.estimators.one_step import OneStep
from bilevel.estimators.penalty import Penalty
from bilevel.estimators.pes import PES
from bilevel.estimators.predicted import Predicted
from bilevel.estimators.replicated import Replicated
from bilevel.estimators.reverse import Reverse
from bilevel.estimators.richardson import Richardson
from bilevel.estimators.sampled import Sampled
from bilevel.estimators.uoro import UORO

__all__ = [
    "PES",
    "UORO",
    "Auto",
    "ClosedForm",
    "Estimator",
    "Evolution",
    "Forward",
    "Implicit",
    "OneStep",
    "Penalty",
    "Predicted",
    "Replicated",
    "Reverse",
    "Richardson",
    "Sampled",
]

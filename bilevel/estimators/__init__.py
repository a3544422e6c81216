"""Hypergradient estimators, one method a file, and the parts that they share.

``call.py`` is :func:`bilevel.hypergradient`, one estimate with its warnings; ``tune`` calls an
estimator's ``step`` itself. Shared parts: adjoint, recursion, residuals, remainder and the rest of
the evidence.
"""

from bilevel.core import Estimator
from bilevel.estimators.auto import Auto
from bilevel.estimators.base import (
    bind_call,
    carry_model,
    data_of_call,
    init_filled,
    solver_of,
)
from bilevel.estimators.call import compiled_step, hypergradient
from bilevel.estimators.closed_form import ClosedForm
from bilevel.estimators.evolution import Evolution
from bilevel.estimators.forward import Forward
from bilevel.estimators.implicit import Implicit
from bilevel.estimators.nonfinite import find_nonfinite
from bilevel.estimators.one_step import OneStep
from bilevel.estimators.outer_hessian import curvature
from bilevel.estimators.penalty import Penalty
from bilevel.estimators.pes import PES
from bilevel.estimators.predicted import Predicted
from bilevel.estimators.rebuild import innermost_estimator, map_innermost, scale_work
from bilevel.estimators.refusals import check_losses, check_minimiser, explain_modes
from bilevel.estimators.replicated import Replicated
from bilevel.estimators.residuals import find_progress, full_gradient, inner_residual
from bilevel.estimators.reverse import Reverse
from bilevel.estimators.richardson import Richardson
from bilevel.estimators.sampled import Sampled
from bilevel.estimators.uoro import UORO
from bilevel.estimators.warn import EvidenceWarning, describe_error

__all__ = [
    "PES",
    "UORO",
    "Auto",
    "ClosedForm",
    "Estimator",
    "EvidenceWarning",
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
    "bind_call",
    "carry_model",
    "check_losses",
    "check_minimiser",
    "compiled_step",
    "curvature",
    "data_of_call",
    "describe_error",
    "explain_modes",
    "find_nonfinite",
    "find_progress",
    "full_gradient",
    "hypergradient",
    "init_filled",
    "inner_residual",
    "innermost_estimator",
    "map_innermost",
    "scale_work",
    "solver_of",
]

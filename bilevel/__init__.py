"""Bilevel hyperparameter optimisation: hypergradients that come with evidence."""

from typing import Any as _Any

from bilevel import extend, outer, single_loop, spaces, testing
from bilevel.checks.attribution import attribute
from bilevel.checks.confidence import Confidence, confidence
from bilevel.checks.cost import Cost, estimate_cost
from bilevel.checks.hypergradient import check
from bilevel.checks.noise import NoiseReport, check_noise
from bilevel.checks.report import CheckReport
from bilevel.core import (
    Continued,
    Counts,
    Data,
    Decay,
    Estimate,
    Evidence,
    InnerState,
    InverseTime,
    Problem,
    Relative,
    SparseRows,
    Stream,
    loss_key,
    transform,
)
from bilevel.estimators import (
    PES,
    UORO,
    Auto,
    ClosedForm,
    EvidenceWarning,
    Evolution,
    Forward,
    Implicit,
    OneStep,
    Penalty,
    Predicted,
    Replicated,
    Reverse,
    Richardson,
    Sampled,
    curvature,
    hypergradient,
)
from bilevel.linear import (
    CG,
    EKFAC,
    GMRES,
    MINRES,
    BiCGSTAB,
    Dense,
    FixedPoint,
    GaussNewton,
    HessianDiagonal,
    Neumann,
    Nystrom,
    OutputLoss,
    SGDLinear,
    SolverInverse,
)
from bilevel.planning.plan import plan
from bilevel.planning.report import Plan
from bilevel.single_loop import DoubleLoop, SingleLoop
from bilevel.solvers import (
    FISTA,
    LBFGS,
    SAGA,
    SGD,
    SVRG,
    Anderson,
    Direct,
    External,
    GradientDescent,
    Newton,
    Optax,
    Picard,
    ProximalGradient,
    solve,
)
from bilevel.tuning import (
    Adaptive,
    Blocks,
    Convergence,
    Divergence,
    DivergenceWarning,
    EarlyStopping,
    Loop,
    Record,
    Restarts,
    Result,
)
from bilevel.tuning.bound_penalties import bound_penalties
from bilevel.tuning.constrained import Constrained, tune_constrained
from bilevel.tuning.front import Front, trace_front
from bilevel.tuning.population import population
from bilevel.tuning.restarts import restarts
from bilevel.tuning.tune import tune
from bilevel.utils import resolve_renamed as _renamed
from bilevel.utils import widen_thread_pool as _widen_thread_pool

__all__ = [
    "CG",
    "EKFAC",
    "FISTA",
    "GMRES",
    "LBFGS",
    "MINRES",
    "PES",
    "SAGA",
    "SGD",
    "SVRG",
    "UORO",
    "Adaptive",
    "Anderson",
    "Auto",
    "BiCGSTAB",
    "Blocks",
    "CheckReport",
    "ClosedForm",
    "Confidence",
    "Constrained",
    "Continued",
    "Convergence",
    "Cost",
    "Counts",
    "Data",
    "Decay",
    "Dense",
    "Direct",
    "Divergence",
    "DivergenceWarning",
    "DoubleLoop",
    "EarlyStopping",
    "Estimate",
    "Evidence",
    "EvidenceWarning",
    "Evolution",
    "External",
    "FixedPoint",
    "Forward",
    "Front",
    "GaussNewton",
    "GradientDescent",
    "HessianDiagonal",
    "Implicit",
    "InnerState",
    "InverseTime",
    "Loop",
    "Neumann",
    "Newton",
    "NoiseReport",
    "Nystrom",
    "OneStep",
    "Optax",
    "OutputLoss",
    "Penalty",
    "Picard",
    "Plan",
    "Predicted",
    "Problem",
    "ProximalGradient",
    "Record",
    "Relative",
    "Replicated",
    "Restarts",
    "Result",
    "Reverse",
    "Richardson",
    "SGDLinear",
    "Sampled",
    "SingleLoop",
    "SolverInverse",
    "SparseRows",
    "Stream",
    "attribute",
    "bound_penalties",
    "check",
    "check_noise",
    "confidence",
    "curvature",
    "estimate_cost",
    "extend",
    "hypergradient",
    "loss_key",
    "outer",
    "plan",
    "population",
    "restarts",
    "single_loop",
    "solve",
    "spaces",
    "testing",
    "trace_front",
    "transform",
    "tune",
    "tune_constrained",
]

_RENAMED = {"Lower": ("InnerState", InnerState)}


_widen_thread_pool()


def __getattr__(name: str) -> _Any:
    """Names of the release before, with a warning."""
    return _renamed(__name__, _RENAMED, name)

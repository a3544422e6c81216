"""The statement of a bilevel problem and its vocabulary: problem, data, estimates, settings."""

from bilevel.core.arguments import require_arguments
from bilevel.core.estimate import Counts, Estimate, Evidence, InnerState, init_inner_state
from bilevel.core.problem import Composite, Data, Loss, Problem, Prox, count_examples, inner_loss
from bilevel.core.protocols import (
    ChoosesEstimator,
    Chosen,
    DrawsTasks,
    Estimator,
    MonitoredEstimator,
    ScalesWork,
)
from bilevel.core.schedules import (
    Decay,
    FunctionSchedule,
    InverseTime,
    Relative,
    Schedule,
    Setting,
    as_schedule,
    as_setting,
    evaluate,
)
from bilevel.core.transforms import StaticTransform, Transform, as_pytree, transform

__all__ = [
    "ChoosesEstimator",
    "Chosen",
    "Composite",
    "Counts",
    "Data",
    "Decay",
    "DrawsTasks",
    "Estimate",
    "Estimator",
    "Evidence",
    "FunctionSchedule",
    "InnerState",
    "InverseTime",
    "Loss",
    "MonitoredEstimator",
    "Problem",
    "Prox",
    "Relative",
    "ScalesWork",
    "Schedule",
    "Setting",
    "StaticTransform",
    "Transform",
    "as_pytree",
    "as_schedule",
    "as_setting",
    "count_examples",
    "evaluate",
    "init_inner_state",
    "inner_loss",
    "require_arguments",
    "transform",
]

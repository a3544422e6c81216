"""The statement of a bilevel problem and its vocabulary: problem, data, estimates, settings."""

from bilevel.core.arguments import require_arguments
from bilevel.core.equation import Equation
from bilevel.core.estimate import Counts, Estimate, Evidence, InnerState, init_inner_state
from bilevel.core.losses import (
    BoundLoss,
    LossResult,
    ShownBatch,
    bind_losses,
    draw_outer,
    freeze_losses,
    hold_model_state,
    loss_key,
    rebind_key,
    require_model_state,
)
from bilevel.core.problem import Composite, Data, Loss, Problem, Prox, count_examples, inner_loss
from bilevel.core.protocols import (
    ChoosesEstimator,
    Chosen,
    DrawsTasks,
    Estimator,
    MonitoredEstimator,
    ScalesWork,
)
from bilevel.core.rows import INDEPENDENT, draw_distinct_rows, draw_rows, shuffles_all
from bilevel.core.schedules import (
    Continued,
    Decay,
    FunctionSchedule,
    InverseTime,
    Relative,
    Schedule,
    Setting,
    as_schedule,
    as_setting,
    as_setting_tree,
    evaluate,
)
from bilevel.core.sparse import SparseRows
from bilevel.core.stream import Stream, take_block
from bilevel.core.transforms import StaticTransform, Transform, as_pytree, transform

__all__ = [
    "INDEPENDENT",
    "BoundLoss",
    "ChoosesEstimator",
    "Chosen",
    "Composite",
    "Continued",
    "Counts",
    "Data",
    "Decay",
    "DrawsTasks",
    "Equation",
    "Estimate",
    "Estimator",
    "Evidence",
    "FunctionSchedule",
    "InnerState",
    "InverseTime",
    "Loss",
    "LossResult",
    "MonitoredEstimator",
    "Problem",
    "Prox",
    "Relative",
    "ScalesWork",
    "Schedule",
    "Setting",
    "ShownBatch",
    "SparseRows",
    "StaticTransform",
    "Stream",
    "Transform",
    "as_pytree",
    "as_schedule",
    "as_setting",
    "as_setting_tree",
    "bind_losses",
    "count_examples",
    "draw_distinct_rows",
    "draw_outer",
    "draw_rows",
    "evaluate",
    "freeze_losses",
    "hold_model_state",
    "init_inner_state",
    "inner_loss",
    "loss_key",
    "rebind_key",
    "require_arguments",
    "require_model_state",
    "shuffles_all",
    "take_block",
    "transform",
]

"""The statement of a bilevel problem and its vocabulary: problem, data, estimates, settings."""

from bilevel.core.arguments import require_arguments
from bilevel.core.estimate import Counts, Estimate, Evidence, Lower, begin
from bilevel.core.problem import Composite, Data, Loss, Problem, examples, inner_loss
from bilevel.core.schedules import Decay, InverseTime, Knob, as_knob, evaluate, knob
from bilevel.core.transform import Fixed, Transform, as_pytree, transform

__all__ = [
    "Composite",
    "Counts",
    "Data",
    "Decay",
    "Estimate",
    "Evidence",
    "Fixed",
    "InverseTime",
    "Knob",
    "Loss",
    "Lower",
    "Problem",
    "Transform",
    "as_knob",
    "as_pytree",
    "begin",
    "evaluate",
    "examples",
    "inner_loss",
    "knob",
    "require_arguments",
    "transform",
]

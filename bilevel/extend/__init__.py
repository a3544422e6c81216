"""What a part of your own (solver, estimator, outer rule, hook) needs: protocols, building blocks.

A part of your own implements the protocol of its noun, and any of the optional ones that say more
about it. It is a frozen dataclass that :func:`register_node` makes a pytree: counts static, numbers
leaves.

Examples
--------
>>> import dataclasses, jax
>>> from bilevel import extend
>>> @dataclasses.dataclass(frozen=True)
... class SignDescent:
...     step_size: float
...
...     def init(self, params, data):
...         return ()
...
...     def step(self, loss, params, hyper, data, key, state):
...         slope = jax.grad(loss)(params, hyper, data)
...         move = lambda w, g: w - self.step_size * jax.numpy.sign(g)
...         return jax.tree.map(move, params, slope), state
>>> _ = extend.register_node(SignDescent)
>>> isinstance(SignDescent(0.1), extend.Stops)
False
"""

from bilevel.core import (
    ChoosesEstimator,
    Counts,
    DrawsTasks,
    Estimator,
    InnerState,
    Loss,
    MonitoredEstimator,
    ScalesWork,
    Schedule,
    as_pytree,
    init_inner_state,
    inner_loss,
)
from bilevel.estimators import (
    find_progress,
    full_gradient,
    init_filled,
    inner_residual,
    innermost_estimator,
    map_innermost,
)
from bilevel.linear import LinearSolver, Solution
from bilevel.outer import Backtracks, OuterRule, SetsTolerance, TracksBest
from bilevel.solvers import (
    ChecksProblem,
    DeclaresStability,
    MeasuresProblem,
    NotUnrollable,
    Refreshes,
    Solver,
    Stops,
    backtrack_step,
)
from bilevel.tuning import Hook, Step, add_convergence, compare_points
from bilevel.utils import (
    PyTree,
    RememberInterrupts,
    is_inexact,
    map_fields,
    register_node,
    strip_weak_types,
    zeros_like,
)

__all__ = [
    "Backtracks",
    "ChecksProblem",
    "ChoosesEstimator",
    "Counts",
    "DeclaresStability",
    "DrawsTasks",
    "Estimator",
    "Hook",
    "InnerState",
    "LinearSolver",
    "Loss",
    "MeasuresProblem",
    "MonitoredEstimator",
    "NotUnrollable",
    "OuterRule",
    "PyTree",
    "Refreshes",
    "RememberInterrupts",
    "ScalesWork",
    "Schedule",
    "SetsTolerance",
    "Solution",
    "Solver",
    "Step",
    "Stops",
    "TracksBest",
    "add_convergence",
    "as_pytree",
    "backtrack_step",
    "compare_points",
    "find_progress",
    "full_gradient",
    "init_filled",
    "init_inner_state",
    "inner_loss",
    "inner_residual",
    "innermost_estimator",
    "is_inexact",
    "map_fields",
    "map_innermost",
    "register_node",
    "strip_weak_types",
    "zeros_like",
]

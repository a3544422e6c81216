"""Inner solvers: how ``params`` move."""

from bilevel.solvers.anderson import Anderson
from bilevel.solvers.base import (
    Carry,
    ChecksProblem,
    DeclaresStability,
    DrawsBatch,
    MeasuresProblem,
    NotUnrollable,
    Refreshes,
    Solver,
    Stops,
    batch_of_step,
    begin_again,
    run_counted,
    run_steps,
    start_solver,
)
from bilevel.solvers.closed_form import Direct
from bilevel.solvers.exact import minimise, solve
from bilevel.solvers.external import External
from bilevel.solvers.gradient_descent import GradientDescent
from bilevel.solvers.lbfgs import LBFGS, Pairs, descent_direction, remember_pair
from bilevel.solvers.line_search import backtrack_step
from bilevel.solvers.model import (
    ModelCarry,
    ModelSolver,
    end_chain,
)
from bilevel.solvers.newton import Newton
from bilevel.solvers.optax_solver import Optax
from bilevel.solvers.picard import Picard
from bilevel.solvers.proximal import FISTA, ProximalGradient
from bilevel.solvers.repeat import DrawsAhead, draw_ahead, repeat_step, step_key
from bilevel.solvers.saga import SAGA
from bilevel.solvers.sampling import Lazy, Sampler, take_rows
from bilevel.solvers.sgd import SGD
from bilevel.solvers.stability import (
    constant_stability_limit,
    exceeds_stability_limit,
    largest_curvature,
    stability_limit,
)
from bilevel.solvers.steps import apply_prox
from bilevel.solvers.svrg import SVRG

__all__ = [
    "FISTA",
    "LBFGS",
    "SAGA",
    "SGD",
    "SVRG",
    "Anderson",
    "Carry",
    "ChecksProblem",
    "DeclaresStability",
    "Direct",
    "DrawsAhead",
    "DrawsBatch",
    "External",
    "GradientDescent",
    "Lazy",
    "MeasuresProblem",
    "ModelCarry",
    "ModelSolver",
    "Newton",
    "NotUnrollable",
    "Optax",
    "Pairs",
    "Picard",
    "ProximalGradient",
    "Refreshes",
    "Sampler",
    "Solver",
    "Stops",
    "apply_prox",
    "backtrack_step",
    "batch_of_step",
    "begin_again",
    "constant_stability_limit",
    "descent_direction",
    "draw_ahead",
    "end_chain",
    "exceeds_stability_limit",
    "largest_curvature",
    "minimise",
    "remember_pair",
    "repeat_step",
    "run_counted",
    "run_steps",
    "solve",
    "stability_limit",
    "start_solver",
    "step_key",
    "take_rows",
]

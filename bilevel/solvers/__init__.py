"""Inner solvers: how ``params`` move."""

from bilevel.solvers.base import (
    Carry,
    ChecksProblem,
    DeclaresStability,
    NotUnrollable,
    Refreshes,
    Solver,
    Stops,
    repeat,
    run,
    solve,
    start,
)
from bilevel.solvers.closed_form import Direct
from bilevel.solvers.exact import minimise
from bilevel.solvers.external import External
from bilevel.solvers.gradient_descent import GradientDescent
from bilevel.solvers.lbfgs import LBFGS, Pairs, direction, remember
from bilevel.solvers.line_search import backtrack
from bilevel.solvers.newton import Newton
from bilevel.solvers.optax_solver import Optax
from bilevel.solvers.proximal import FISTA, ProximalGradient
from bilevel.solvers.saga import SAGA
from bilevel.solvers.sampling import Lazy, Sampler, take
from bilevel.solvers.sgd import SGD
from bilevel.solvers.stability import (
    constant_stability_limit,
    exceeds_stability_limit,
    largest_curvature,
    stability_limit,
)
from bilevel.solvers.svrg import SVRG

__all__ = [
    "FISTA",
    "LBFGS",
    "SAGA",
    "SGD",
    "SVRG",
    "Carry",
    "ChecksProblem",
    "DeclaresStability",
    "Direct",
    "External",
    "GradientDescent",
    "Lazy",
    "Newton",
    "NotUnrollable",
    "Optax",
    "Pairs",
    "ProximalGradient",
    "Refreshes",
    "Sampler",
    "Solver",
    "Stops",
    "backtrack",
    "constant_stability_limit",
    "direction",
    "exceeds_stability_limit",
    "largest_curvature",
    "minimise",
    "remember",
    "repeat",
    "run",
    "solve",
    "stability_limit",
    "start",
    "take",
]

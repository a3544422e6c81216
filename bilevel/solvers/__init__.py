"""Inner solvers: how ``params`` move."""

from bilevel.solvers.base import Solver, solve
from bilevel.solvers.closed_form import Direct
from bilevel.solvers.external import External
from bilevel.solvers.gradient_descent import GradientDescent
from bilevel.solvers.lbfgs import LBFGS
from bilevel.solvers.newton import Newton
from bilevel.solvers.optax_solver import Optax
from bilevel.solvers.proximal import FISTA, ProximalGradient
from bilevel.solvers.saga import SAGA
from bilevel.solvers.sgd import SGD
from bilevel.solvers.svrg import SVRG

__all__ = [
    "FISTA",
    "LBFGS",
    "SAGA",
    "SGD",
    "SVRG",
    "Direct",
    "External",
    "GradientDescent",
    "Newton",
    "Optax",
    "ProximalGradient",
    "Solver",
    "solve",
]

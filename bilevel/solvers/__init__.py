"""Inner solvers: how ``params`` move."""

from bilevel.solvers.base import Solver as Solver
from bilevel.solvers.base import solve as solve
from bilevel.solvers.gradient_descent import GradientDescent as GradientDescent
from bilevel.solvers.optax_solver import Optax as Optax
from bilevel.solvers.sgd import SGD as SGD

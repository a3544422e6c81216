"""Inner solvers: how ``params`` move."""

from bilevel.solvers.base import Solver as Solver
from bilevel.solvers.base import solve as solve
from bilevel.solvers.closed_form import Direct as Direct
from bilevel.solvers.external import External as External
from bilevel.solvers.gradient_descent import GradientDescent as GradientDescent
from bilevel.solvers.lbfgs import LBFGS as LBFGS
from bilevel.solvers.newton import Newton as Newton
from bilevel.solvers.optax_solver import Optax as Optax
from bilevel.solvers.proximal import FISTA as FISTA
from bilevel.solvers.proximal import ProximalGradient as ProximalGradient
from bilevel.solvers.saga import SAGA as SAGA
from bilevel.solvers.sgd import SGD as SGD
from bilevel.solvers.svrg import SVRG as SVRG

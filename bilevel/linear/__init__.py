"""Matrix-free linear solvers on pytrees for adjoint systems ``H v = b``: one method, one file."""

from bilevel.linear.base import LinearSolver as LinearSolver
from bilevel.linear.base import Matvec as Matvec
from bilevel.linear.base import Operator as Operator
from bilevel.linear.base import Solution as Solution
from bilevel.linear.base import relative_residual as relative_residual
from bilevel.linear.bicgstab import BiCGSTAB as BiCGSTAB
from bilevel.linear.cg import CG as CG
from bilevel.linear.dense import Dense as Dense
from bilevel.linear.fixed_point import FixedPoint as FixedPoint
from bilevel.linear.gauss_newton import GaussNewton as GaussNewton
from bilevel.linear.gauss_newton import OutputLoss as OutputLoss
from bilevel.linear.gmres import GMRES as GMRES
from bilevel.linear.minres import MINRES as MINRES
from bilevel.linear.neumann import Neumann as Neumann
from bilevel.linear.nystrom import Nystrom as Nystrom
from bilevel.linear.sgd_linear import SGDLinear as SGDLinear

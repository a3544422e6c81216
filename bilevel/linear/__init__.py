"""Matrix-free linear solvers on pytrees for adjoint systems ``H v = b``: one method, one file."""

from bilevel.linear.base import LinearSolver as LinearSolver
from bilevel.linear.base import Matvec as Matvec
from bilevel.linear.base import Operator as Operator
from bilevel.linear.base import Solution as Solution
from bilevel.linear.base import relative_residual as relative_residual
from bilevel.linear.cg import CG as CG

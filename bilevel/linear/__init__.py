"""Matrix-free linear solvers on pytrees for adjoint systems ``H v = b``: one method, one file."""

from bilevel.linear.base import (
    LinearSolver,
    Matvec,
    Operator,
    Solution,
    relative_residual,
    solve_scaled,
)
from bilevel.linear.bicgstab import BiCGSTAB
from bilevel.linear.cg import CG
from bilevel.linear.dense import Dense
from bilevel.linear.diagonal import HessianDiagonal
from bilevel.linear.eigenvalues import (
    Eigenvalue,
    extremes,
    gaussian,
    largest_eigenvalue,
    largest_on_matrices,
    largest_without_compiling,
    power_iteration,
    spectral_norm,
)
from bilevel.linear.ekfac import EKFAC
from bilevel.linear.equilibration import equilibrate_rows
from bilevel.linear.fixed_point import FixedPoint
from bilevel.linear.gauss_newton import GaussNewton, OutputLoss
from bilevel.linear.gmres import GMRES
from bilevel.linear.lanczos import dominant_eigenpair, function_product
from bilevel.linear.minres import MINRES
from bilevel.linear.neumann import Neumann
from bilevel.linear.nystrom import Nystrom
from bilevel.linear.preconditioner import Inverse, InvertsOperator
from bilevel.linear.sgd_linear import SGDLinear
from bilevel.linear.singular import factorise
from bilevel.linear.solver_inverse import SolverInverse
from bilevel.linear.step_size import stable_step

__all__ = [
    "CG",
    "EKFAC",
    "GMRES",
    "MINRES",
    "BiCGSTAB",
    "Dense",
    "Eigenvalue",
    "FixedPoint",
    "GaussNewton",
    "HessianDiagonal",
    "Inverse",
    "InvertsOperator",
    "LinearSolver",
    "Matvec",
    "Neumann",
    "Nystrom",
    "Operator",
    "OutputLoss",
    "SGDLinear",
    "Solution",
    "SolverInverse",
    "dominant_eigenpair",
    "equilibrate_rows",
    "extremes",
    "factorise",
    "function_product",
    "gaussian",
    "largest_eigenvalue",
    "largest_on_matrices",
    "largest_without_compiling",
    "power_iteration",
    "relative_residual",
    "solve_scaled",
    "spectral_norm",
    "stable_step",
]

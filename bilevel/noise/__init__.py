"""The noise of SGD-like inner solvers at finite step sizes: pure functions, one module a topic.

Hessians, covariances and step sizes come in, covariances, limits and times come out; what is in
``hypergradients`` also takes a ``Problem``. A module is used by its name, as in
``noise.steady_state.covariance(hessian, noise, step_size)``.
"""

from bilevel.linear import eigenvalues as spectrum
from bilevel.linear import lanczos
from bilevel.noise import moments
from bilevel.noise.batches import batch_factor
from bilevel.noise.continuous_time import escape, modified_equation, sde
from bilevel.noise.hypergradients import bias, influence, prediction
from bilevel.noise.hypergradients import error as hypergradient_error
from bilevel.noise.hypergradients import measured as estimate
from bilevel.noise.moments import feedback, limits, linearised, rules, shuffled, stability
from bilevel.noise.moments.affine import Affine, Moments
from bilevel.noise.moments.compressed import Compressed
from bilevel.noise.moments.eigenbasis import Diagonal
from bilevel.noise.moments.least_squares import LeastSquares
from bilevel.noise.moments.ridge import JointMoments, Ridge
from bilevel.noise.per_example import ExampleLoss, FlatProblem
from bilevel.noise.quadratic import (
    averaging,
    bounds,
    epochs,
    equilibrium,
    gaussian_inputs,
    heavy_ball,
    minibatch,
    posterior,
    preconditioned,
    steady_state,
    transient,
)

__all__ = [
    "Affine",
    "Compressed",
    "Diagonal",
    "ExampleLoss",
    "FlatProblem",
    "JointMoments",
    "LeastSquares",
    "Moments",
    "Ridge",
    "averaging",
    "batch_factor",
    "bias",
    "bounds",
    "epochs",
    "equilibrium",
    "escape",
    "estimate",
    "feedback",
    "gaussian_inputs",
    "heavy_ball",
    "hypergradient_error",
    "influence",
    "lanczos",
    "limits",
    "linearised",
    "minibatch",
    "modified_equation",
    "moments",
    "posterior",
    "preconditioned",
    "prediction",
    "rules",
    "sde",
    "shuffled",
    "spectrum",
    "stability",
    "steady_state",
    "transient",
]

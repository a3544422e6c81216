"""The noise of SGD-like inner solvers at finite step sizes: pure functions, one module a topic.

Hessians, covariances and step sizes come in, covariances, limits and times come out. A module is
used by its name: ``noise.steady_state.covariance(hessian, noise, step_size)``.
"""

from bilevel.noise import averaging as averaging
from bilevel.noise import bias as bias
from bilevel.noise import bounds as bounds
from bilevel.noise import epochs as epochs
from bilevel.noise import equilibrium as equilibrium
from bilevel.noise import escape as escape
from bilevel.noise import estimate as estimate
from bilevel.noise import feedback as feedback
from bilevel.noise import gaussian_inputs as gaussian_inputs
from bilevel.noise import heavy_ball as heavy_ball
from bilevel.noise import hypergradient_error as hypergradient_error
from bilevel.noise import influence as influence
from bilevel.noise import lanczos as lanczos
from bilevel.noise import limits as limits
from bilevel.noise import linearised as linearised
from bilevel.noise import minibatch as minibatch
from bilevel.noise import modified_equation as modified_equation
from bilevel.noise import moments as moments
from bilevel.noise import posterior as posterior
from bilevel.noise import preconditioned as preconditioned
from bilevel.noise import prediction as prediction
from bilevel.noise import rules as rules
from bilevel.noise import sde as sde
from bilevel.noise import spectrum as spectrum
from bilevel.noise import stability as stability
from bilevel.noise import steady_state as steady_state
from bilevel.noise import transient as transient
from bilevel.noise.affine import Affine as Affine
from bilevel.noise.affine import Moments as Moments
from bilevel.noise.batches import batch_factor as batch_factor
from bilevel.noise.compressed import Compressed as Compressed
from bilevel.noise.eigenbasis import Diagonal as Diagonal
from bilevel.noise.least_squares import LeastSquares as LeastSquares
from bilevel.noise.ridge import JointMoments as JointMoments
from bilevel.noise.ridge import Ridge as Ridge

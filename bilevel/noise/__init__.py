"""The noise of SGD-like inner solvers at finite step sizes: pure functions, one module a topic.

Hessians, covariances and step sizes come in, covariances, limits and times come out. A module is
used by its name: ``bl.noise.stationary.covariance(hessian, noise, step_size)``.
"""

from bilevel.noise import lanczos as lanczos

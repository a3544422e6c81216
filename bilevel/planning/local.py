"""What the dense route knows of a problem at its solution, in NumPy arrays."""

from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """The single examples, in the eigenbasis of the inner Hessian; means as they are, not 0.

    ``hessian`` ``H_i [m, n, n]`` and ``gradient [m, n]`` of the inner loss, ``derivative [p, m,
    n]`` ``H_i D_j + d grad f_i / d theta_j``, and ``coupling [p, m, n, n]``, its derivative in x.
    """

    hessian: np.ndarray
    gradient: np.ndarray
    derivative: np.ndarray
    coupling: np.ndarray


class Local(NamedTuple):
    r"""The problem at its solution, in the eigenbasis of the inner Hessian.

    The hypergradient of ``x* + u`` and ``D* + E`` is, to second order, ``exact_j + slope_j.u +
    l.E_j + u.slope_derivative_j.u / 2 + u.Q.E_j``, and off quadratic losses its stationary mean is
    moved by ``-<shift_j, E u u^T> / 2 - <cubic, E u E_j^T>`` (:mod:`bilevel.noise.bias`, by
    adjoints).

    Parameters
    ----------
    h, vectors : eigenvalues ``[n]``, eigenvectors ``[n, n]``.
    derivative : ``D* [p, n]``; ``coupling`` ``T_j [p, n, n]``, mean over the examples.
    gradient, hessian : ``l [n]``, ``Q [n, n]`` of the outer loss.
    slope, slope_derivative : ``[p, n]``, ``[p, n, n]``.
    third, cubic, shift : ``[n, n, n]`` of the inner loss; along ``H^-1 l``; ``[p, n, n]``.
    exact : ``[p]``, the hypergradient.
    start : ``[n]``, deviation of the point from which the loss is quadratic on the way down.
    delay : how far that is from params, in step size times steps of gradient descent.
    steepest : largest curvature at params.
    solution : ``x*``, in the order of ``ravel_pytree(params)``.
    """

    h: np.ndarray
    vectors: np.ndarray
    derivative: np.ndarray
    coupling: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    slope: np.ndarray
    slope_derivative: np.ndarray
    third: np.ndarray
    cubic: np.ndarray
    shift: np.ndarray
    exact: np.ndarray
    start: np.ndarray
    delay: float
    steepest: float
    solution: np.ndarray

r"""Second moments of SGD and its derivative at stationarity, for many step sizes and batch sizes.

Around the solution ``u' = T u - L mean_batch (H_i u_0 + g_i)`` and, for every hyperparameter,
``E_j' = T E_j - L mean_batch (H_i E_j0 + T_ij u_0 + e_ij)``, with the slots of
:mod:`bilevel.noise.rules` (iterate, and velocity with momentum). In the eigenbasis of the mean
Hessian two coordinates have the moment ``P = M_a P M_b^T + source + p c(P_00) L L^T`` with ``M_a =
T - h_a L e_0^T``, hence

    P_00 = response(source)_00 + p kappa o c(P_00)

with ``kappa`` the response to unit noise, of SGD ``eta / (h_a + h_b - eta h_a h_b)``, and ``c(P) =
mean H_i P H_i - H P H`` (:mod:`bilevel.noise.feedback`), block after block. A hypergradient
contracts x with one ``D_j`` at a time, so ``2 p + 1`` blocks of size n are enough.
In NumPy, so that a candidate compiles nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bilevel.planning.local import Examples
from bilevel.planning.scheme import Scheme


class JointBlocks(NamedTuple):
    """The blocks ``E u u^T [n, n]``, ``E u E_j^T`` and ``E E_j E_j^T``, ``[p, n, n]``.

    Of all slots where they are stationary, with trailing axes ``[s, s]``.
    """

    xx: np.ndarray
    xd: np.ndarray
    dd: np.ndarray

    @property
    def read(self) -> "JointBlocks":
        """Return the blocks of the iterates alone, out of those of all slots."""
        return JointBlocks(*(block[..., 0, 0] for block in self))


class StepResponse:
    """How the mean step answers a constant source, between each two coordinates."""

    def __init__(self, scheme: Scheme, h: np.ndarray, step_size: float) -> None:
        """Invert the maps of second moments once: ``[n, n, s^2, s^2]``."""
        transition, self.gain = scheme.step_matrices(step_size)
        self.pace = step_size / (1 - scheme.mu)  # what a step is worth, of gradient descent
        s, n = len(self.gain), len(h)
        reads = np.eye(s)[0]
        self.maps = transition - h[:, None, None] * np.outer(self.gain, reads)
        self.beside = -np.outer(self.gain, reads)  # how a gradient beside the own one enters
        pairs = np.einsum("aij,bkl->abikjl", self.maps, self.maps).reshape(n, n, s * s, s * s)
        self._inverse = np.linalg.inv(np.eye(s * s) - pairs)
        self.kappa = self.settle(self.spread(np.ones((n, n))))[..., 0, 0]

    def spread(self, covariance: np.ndarray) -> np.ndarray:
        """Return what gradient noise adds in one step: ``[..., n, n]`` to ``[..., n, n, s, s]``."""
        return covariance[..., None, None] * np.outer(self.gain, self.gain)

    def settle(self, source: np.ndarray) -> np.ndarray:
        """Return the ``P`` with ``P = M P M^T + source``; ``[..., n, n, s, s]``."""
        flat = source.reshape(*source.shape[:-2], -1, 1)
        return (self._inverse @ flat).reshape(source.shape)


@dataclass(frozen=True)
class Noise:
    """Minibatch noise around a solution; make it with :meth:`from_examples`.

    Parameters
    ----------
    examples : with means taken out, in the eigenbasis; ``h [n]``; ``coupling [p, n, n]``.
    feedback : ``c``, ``[n^2, n^2]``.
    """

    examples: Examples
    h: np.ndarray
    coupling: np.ndarray
    feedback: np.ndarray

    @classmethod
    def from_examples(cls, examples: Examples, h: np.ndarray) -> "Noise":
        """Take the means out, sum the examples up once."""
        H, g, e, T = examples
        apart = Examples(
            H - np.mean(H, 0),
            g - np.mean(g, 0),
            e - np.mean(e, 1, keepdims=True),
            T - np.mean(T, 1, keepdims=True),
        )
        m, n = g.shape
        flat = apart.hessian.reshape(m, n * n)
        pairs = (flat.T @ flat / m).reshape(n, n, n, n).transpose(0, 2, 1, 3)
        return cls(apart, h, np.mean(T, 1), pairs.reshape(n * n, n * n))

    @property
    def curvature_variance(self) -> np.ndarray:
        """Return the variance over examples of the curvature along eigenvectors, ``[n]``."""
        n = len(self.h)
        return self.feedback.reshape(n, n, n, n)[(np.arange(n),) * 4]

    def moments(self, response: StepResponse, factor: float) -> JointBlocks:
        """Return the stationary moments of all slots, for a step size below the limit."""
        (H, g, e, T), C, maps = self.examples, self.coupling, response.maps
        m, n = g.shape
        back, kappa = factor * self.feedback.T, response.kappa.ravel()

        def settle(source: np.ndarray) -> np.ndarray:
            """Return the ``P`` with ``P = M P M^T + source + p c(P_00) L L^T``."""
            alone = response.settle(source)
            term = total = alone[..., 0, 0].reshape(*source.shape[:-4], n * n)
            while np.abs(term).max(initial=0.0) > 1e-10 * np.abs(total).max(initial=0.0):
                term = kappa * (term @ back)
                total = total + term
            fed = (total @ back).reshape(source.shape[:-2])
            return alone + response.settle(response.spread(fed))

        def covary(X: np.ndarray, P: np.ndarray, Y: np.ndarray) -> np.ndarray:
            """Return ``p mean X_i P Y_i^T`` where the means of X and Y are out: ``[n, n]``."""
            return factor * np.tensordot(X @ P, Y, axes=((0, 2), (0, 2))) / m

        def couple(P: np.ndarray) -> np.ndarray:
            """Return ``E[z' E_j'^T]`` by the coupling alone, of ``P = E[z u^T]``: ``M P K_j^T``."""
            read = (maps[:, None] @ P[..., :1])[..., 0]  # the iterate alone moves a derivative
            return -(C[:, None] @ read)[..., None] * response.gain

        # Block after block, each the source of the next: E u u^T, then E u E_j^T, then E E_j E_j^T.
        xx = settle(response.spread(factor * g.T @ g / m))
        x00 = xx[..., 0, 0]
        shared = [
            covary(H, x00, T_j) + factor * g.T @ e_j / m for T_j, e_j in zip(T, e, strict=True)
        ]
        xd = settle(response.spread(np.stack(shared)) + couple(xx))
        dx = xd.transpose(0, 2, 1, 4, 3)
        half = [covary(H, P, T_j) for P, T_j in zip(dx[..., 0, 0], T, strict=True)]
        half = response.spread(np.stack(half)) + couple(dx)
        own = [
            covary(T_j, x00, T_j) + factor * e_j.T @ e_j / m for T_j, e_j in zip(T, e, strict=True)
        ]
        own = response.spread(np.stack(own) + C @ x00 @ C.transpose(0, 2, 1))
        return JointBlocks(xx, xd, settle(half + half.transpose(0, 2, 1, 4, 3) + own))

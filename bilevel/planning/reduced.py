r"""SVRG and SAGA, whose noise vanishes: the exact errors of one run, step after step.

On a quadratic inner loss iterate and derivative, ``z = (u, E_j)`` in deviations, move by

    SVRG:  v' = v - eta [C_i v + C s],  v = z - s,  s the last snapshot
    SAGA:  z' = z - eta [C_i z - t_i + mean t],  t_i' = C_i z,  t_i = -F_i(z*) at the start

with ``C_i = [[H_i, 0], [T_ij, H_i]]``: second moments close, as those of SGD do. For single
examples, drawn independently. Derived for this project.
"""

from collections.abc import Iterator

import numpy as np

from bilevel.planning.local import Examples, Local
from bilevel.planning.predict import read_hypergradient
from bilevel.planning.stationary import JointBlocks

_LARGEST = 3e5  # entries of what a step multiplies: beyond, a comparison takes minutes
_LONGEST = 20_000  # steps that are followed


class Reduced:
    """A quadratic problem for SVRG and SAGA: ``C_i [p, m, 2 n, 2 n]`` and ``F_i(z*) [p, m, 2 n]``.

    ``largest`` is the largest curvature of a single example, which decides their step size.
    """

    def __init__(self, local: Local, examples: Examples) -> None:
        """Stack iterate and derivative, for one hyperparameter at a time."""
        H, g, e, T = examples
        p, m, n = e.shape
        both = np.zeros((p, m, 2 * n, 2 * n))
        both[:, :, :n, :n] = both[:, :, n:, n:] = H
        both[:, :, n:, :n] = T
        self.local, self.matrices = local, both
        self.values = np.concatenate([np.broadcast_to(g, e.shape), e], 2)
        self.mean = np.mean(both, 1)
        self.begin = np.concatenate([np.broadcast_to(local.start, (p, n)), -local.derivative], 1)
        self.largest = float(np.linalg.eigvalsh((H + H.transpose(0, 2, 1)) / 2)[:, -1].max())

    def errors(self, name: str, step_size: float, steps: int, target: float) -> np.ndarray:
        """Return the root mean square error after each step until it is ``target``.

        SVRG: at the ends of its periods, ``2 m`` steps each. At most 20 000 steps are followed.
        """
        moments, found = getattr(self, f"_{name}")(step_size), []
        shrunk, mean = np.eye(self.mean.shape[-1]) - step_size * self.mean, self.begin
        stride = self.stride(name)
        each = np.stack([np.linalg.matrix_power(one, stride) for one in shrunk])
        for second in moments:
            mean = np.einsum("pab,pb->pa", each, mean)
            found.append(self._read(second, mean))
            if not target < found[-1] < np.inf or len(found) * stride >= min(steps, _LONGEST):
                break
        return np.array(found)

    def stride(self, name: str) -> int:
        """Return the number of steps between two errors."""
        return 2 * self.matrices.shape[1] if name == "svrg" else 1

    def fits(self, name: str) -> bool:
        """Return whether all steps of a comparison are a matter of seconds."""
        p, m, d, _ = self.matrices.shape
        return p * d**3 * (d if name == "svrg" else m) <= _LARGEST

    def _read(self, second: np.ndarray, mean: np.ndarray) -> float:
        local, n = self.local, len(self.local.h)
        u, E = mean[:, :n], mean[:, n:]
        own = np.einsum("pa,pb->pab", mean, mean)
        P = second - own
        V = JointBlocks(P[0, :n, :n], P[:, :n, n:], P[:, n:, n:])
        shared, *variances = read_hypergradient(local, V)
        bias = np.sum(local.slope * u, 1) + E @ local.gradient + shared
        bias += np.einsum("pa,pab,pb->p", u, local.slope_derivative, u) / 2
        bias += np.einsum("pa,ab,pb->p", u, local.hessian, E)
        return float(np.sqrt(np.sum(bias**2) + np.sum(variances)))

    def _svrg(self, eta: float) -> Iterator[np.ndarray]:
        """Yield ``E z z^T`` at the snapshots."""
        p, m, d, _ = self.matrices.shape
        C, apart = self.mean, self.matrices - self.mean[:, None]
        pairs = np.einsum("piab,picd->pacbd", apart, apart, optimize=True) / m
        pairs = pairs.reshape(p, d * d, d * d)
        kept = np.eye(d) - eta * C
        S = np.einsum("pa,pb->pab", self.begin, self.begin)
        while True:
            pull = eta * C @ S
            V, K = np.zeros_like(S), np.zeros_like(S)  # E v v^T, E v s^T
            source = eta * pull @ C.transpose(0, 2, 1)
            for _ in range(2 * m):
                noise = (pairs @ V.reshape(p, d * d, 1)).reshape(p, d, d)
                across = eta * kept @ K @ C.transpose(0, 2, 1)
                V = kept @ V @ kept.transpose(0, 2, 1) + eta**2 * noise + source
                V, K = V - across - across.transpose(0, 2, 1), kept @ K - pull
            S = V + K + K.transpose(0, 2, 1) + S
            yield S

    def _saga(self, eta: float) -> Iterator[np.ndarray]:
        """Yield ``E z z^T`` after each step."""
        Ci, C, m = self.matrices, self.mean, self.matrices.shape[1]

        def t(x: np.ndarray) -> np.ndarray:
            return np.swapaxes(x, -1, -2)

        def outer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.einsum("...a,...b->...ab", x, y)

        # E z z^T, z t_i^T, t_i t_i^T, t_i g^T, z g^T, g g^T with g the mean of the table.
        table = -self.values
        table_mean = np.mean(table, 1)
        P, A = outer(self.begin, self.begin), outer(self.begin[:, None], table)
        B, R = outer(table, table), outer(table, table_mean[:, None])
        K, G = outer(self.begin, table_mean), outer(table_mean, table_mean)
        while True:
            PC = P[:, None] @ t(Ci)  # E z (C_i z)^T
            change = Ci @ PC - Ci @ A - t(Ci @ A) + B  # of C_i z - t_i
            noise, pull = np.mean(change, 1), C @ K - G
            after = P - eta * (P @ t(C) + C @ P) + eta**2 * (noise + C @ K + t(C @ K) - G)
            new_K = K + (P @ t(C) - K) / m - eta * (C @ K + (noise + t(pull)) / m)
            new_G = G + (pull + t(pull)) / m + noise / m**2
            stay = A - eta * t(R) - eta * (C[:, None] @ A - t(R)) + eta / m * (Ci @ A - B)
            drawn = PC - eta * ((Ci @ P[:, None] - t(A)) @ t(Ci) + t(K)[:, None] @ t(Ci))
            # An example that is drawn, with probability 1 / m, has a new entry; else its old one.
            new_A = stay + (drawn - (A - eta * t(R))) / m
            kept_R = R + (t(A) @ t(C)[:, None] - R) / m - (t(A) @ t(Ci) - B) / m**2
            new_R = kept_R + (Ci @ (K[:, None] + (PC - A) / m) - R) / m
            B = B + (Ci @ PC - B) / m
            P, A, R, K, G = after, new_A, new_R, new_K, new_G
            yield P

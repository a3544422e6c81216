r"""What the noise of proximal SGD does to the derivative at a kink, in closed form.

One coordinate of a lasso, curvature h, gradient noise s, slack ``delta = lam1 - |gradient at 0|``,
step eta. Away from 0 the derivative ``D = dw / dlog lam1`` moves towards ``-lam1 / h``; a visit of
0 resets it. So ``E D = -(lam1 / h) E[1 - e^{-eta h A}]`` with A the time since the last visit,
which for a reversible diffusion has the law of the time to the next one. For the Ornstein-Uhlenbeck
process reflected at 0, ``z = delta / (s (eta h)^{1/2})``, the share of ``-lam1 / h`` is

    F(z) = 1 - 2 (pi^{-1/2} - z erfcx(z)) / (pi^{1/2} erfcx(z)^2)

where exact is 0 for ``z > 0`` (the coordinate is 0) and 1 for ``z < 0``. ``F(0) = 1 - 2 / pi``;
``F(z) ~ 1 / (2 z^2) = eta h s^2 / (2 delta^2)`` for large z: the bias begins to fall as the step
where ``eta`` is below ``delta^2 / (h s^2)``. Derived here, for small steps and delta below s.
"""

import math

import numpy as np
from scipy import special

from experiments.studies.open_questions.kinks import BATCH, Reference, solve_sparse


def predict_kink_bias(z: float) -> float:
    """Return ``F(z)``, the share of its free derivative that a coordinate is given on average.

    Examples
    --------
    >>> round(predict_kink_bias(0.0), 4), round(predict_kink_bias(10.0), 4)
    (0.3634, 0.0049)
    """
    if z < -5:  # erfcx overflows where the kink is hardly ever seen
        return 1.0
    scaled = float(special.erfcx(z))
    return 1 - 2 * (1 / math.sqrt(math.pi) - z * scaled) / (math.sqrt(math.pi) * scaled**2)


def predict_support_bias(
    inner: tuple[np.ndarray, np.ndarray],
    outer: tuple[np.ndarray, np.ndarray],
    log_lam1: float,
    step: float,
) -> tuple[float, float]:
    """Return the relative bias of a lasso's hypergradient, and the smallest ``|z|``.

    Each coordinate by itself: the others of the support follow at once, which leaves it the
    curvature and the noise of its Schur complement; flipped in or out of the support it changes the
    hypergradient by a jump, of which the bias is the share :func:`predict_kink_bias` is off. Exact
    in the limit of small steps for coordinates that do not act on one another; else a heuristic.
    """
    (X, y), lam1 = inner, float(np.exp(log_lam1))
    H = X.T @ X / len(y)
    found: Reference = solve_sparse(inner, outer, log_lam1, 0.0)
    w, residual = found.solution, X @ found.solution - y
    gradient, noise = X.T @ residual / len(y), X * residual[:, None]
    V, c = outer
    slope, signs, support = V.T @ (V @ w - c) / len(c), np.sign(-(X.T @ residual)), w != 0

    def differentiate(S: np.ndarray) -> float:
        return float(np.linalg.solve(H[np.ix_(S, S)], -lam1 * signs[S]) @ slope[S])

    total, nearest = 0.0, np.inf
    for j in range(len(w)):
        others, flipped = support.copy(), support.copy()
        others[j], flipped[j] = False, not support[j]
        follow = np.linalg.solve(H[np.ix_(others, others)], H[others, j])
        h = H[j, j] - H[others, j] @ follow
        s = (noise[:, j] - noise[:, others] @ follow).std() / BATCH**0.5
        slack = -h * abs(w[j]) if support[j] else lam1 - abs(gradient[j])
        z = slack / (s * math.sqrt(step * h))
        share = predict_kink_bias(z)
        jump = differentiate(flipped) - found.grad[0]
        total += (1 - share if support[j] else share) * jump
        nearest = min(nearest, abs(z))
    return total / abs(float(found.grad[0])), float(nearest)

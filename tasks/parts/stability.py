"""How large a step SGD can take on a linear model: facts of the design, not a rule of thumb."""

import numpy as np

BATCH = 32


def stability(X: np.ndarray, penalty: float, bound: float = 1.0) -> dict[str, float]:
    r"""Return curvatures of a linear model's inner loss, and the stability limits of SGD.

    With rows ``x_i [d]`` (times the square root of their weight), Hessians of single rows at most
    ``bound x_i x_i^T``, and penalties at most ``penalty``, write
    ``L = bound lambda_max(mean x x^T)`` and ``R = bound max |x_i|^2``. The Hessian of B rows drawn
    with replacement has ``E[H_B^2] <= (L + penalty + R / B) E[H_B]``, so that each step shrinks the
    mean square distance between two iterates while ``step_size < 2 / (L + penalty + R / B)``; for
    the full batch without ``R / B``. Leave room for the penalties that tuning will raise.

    Parameters
    ----------
    X : ``[n, d]``, or ``[n, F, d]`` for folds, of which the worst counts.
    """
    stacked = X if X.ndim == 3 else X[:, None]
    curvature = bound * max(_largest(stacked[:, f]) for f in range(stacked.shape[1]))
    row = bound * float(np.max(np.sum(stacked**2, axis=-1)))
    return {
        "curvature": curvature,
        "row_curvature": row,
        "max_step_size": 2 / (curvature + penalty),
        f"max_step_size_batch_{BATCH}": 2 / (curvature + penalty + row / BATCH),
    }


def _largest(X: np.ndarray) -> float:
    """Return the largest eigenvalue of ``mean x x^T``, by the smaller of the two Gram matrices."""
    gram = X.T @ X if X.shape[0] >= X.shape[1] else X @ X.T
    return float(np.linalg.eigvalsh(gram)[-1]) / len(X)

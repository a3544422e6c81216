"""Is a predicted error bar right? Theory beside replication, and in words where they part."""

from dataclasses import dataclass

import jax
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Data, Estimator, Problem
from bilevel.estimators import Implicit, Predicted, hypergradient
from bilevel.linear import CG
from bilevel.solvers import GradientDescent, minimise
from bilevel.utils import PyTree, norm, require_positive, require_positive_int

_SHOWN = 12  # hyperparameters in the table


@dataclass(frozen=True)
class NoiseReport:
    """What :func:`check_noise` found, all ``[p]`` in the order of ``ravel_pytree(hyper)``.

    Parameters
    ----------
    predicted, replicated : standard error of one run by theory (NaN where it predicts none, over
        shuffled epochs), and over the keys.
    uncertainty : standard error of ``replicated``.
    predicted_bias : by theory; ``None`` where it predicts none.
    measured_bias : mean over the keys minus the hypergradient at the minimiser.
    bias_uncertainty : standard error of ``measured_bias``.
    agrees : ``[p]``, booleans: both agree.
    verdicts : ``p`` sentences.
    runs : the number of keys.
    """

    predicted: np.ndarray
    replicated: np.ndarray
    uncertainty: np.ndarray
    predicted_bias: np.ndarray | None
    measured_bias: np.ndarray
    bias_uncertainty: np.ndarray
    agrees: np.ndarray
    verdicts: tuple[str, ...]
    runs: int

    @property
    def ratio(self) -> np.ndarray:
        """Return ``predicted / replicated``; 1 where both are 0."""
        same = self.predicted == self.replicated
        return np.where(same, 1.0, self.predicted / np.where(same, 1.0, self.replicated))

    def __str__(self) -> str:
        """Return the table; of many hyperparameters those whose prediction is furthest off."""
        with np.errstate(divide="ignore"):
            off = np.abs(np.log(np.maximum(self.ratio, 0)))
        shown = np.sort(np.argsort(-off, kind="stable")[:_SHOWN])
        lines = [
            f"{self.runs} runs; theory and replication agree for "
            f"{int(self.agrees.sum())} of {len(self.agrees)} hyperparameters",
            f"{'hyper':>6} {'predicted':>10} {'replicated':>21} {'ratio':>6} "
            f"{'bias':>10} {'measured':>21}  verdict",
        ]
        for j in shown:
            bias = "-" if self.predicted_bias is None else f"{self.predicted_bias[j]:.2e}"
            lines.append(
                f"{j:>6} {self.predicted[j]:>10.2e} "
                f"{self.replicated[j]:>10.2e} ± {self.uncertainty[j]:.1e} {self.ratio[j]:>6.2f} "
                f"{bias:>10} {self.measured_bias[j]:>10.1e} ± {self.bias_uncertainty[j]:.1e}  "
                f"{self.verdicts[j]}"
            )
        return "\n".join(lines)


def check_noise(
    problem: Problem,
    estimator: Estimator,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
    *,
    runs: int = 400,
    tol: float = 0.3,
) -> NoiseReport:
    """Compare the noise that :class:`bilevel.Predicted` predicts with that of ``runs`` real runs.

    The theory linearises stationary SGD around one minimum; replication assumes nothing. Where they
    part, one of these does not hold, and the verdict says which way to look. Nothing is printed:
    ``str(report)`` is a table.

    Parameters
    ----------
    problem, hyper, params, data, key : as for :func:`bilevel.hypergradient`; every run starts at
        ``params``.
    estimator : what :class:`bilevel.Predicted` covers, without it or within it.
    runs : the number of keys, side by side; the spread is then known to about
        ``1 / sqrt(2 runs)`` of itself.
    tol : relative difference that still counts as agreement, beyond 4 standard errors. The theory
        is right to O(step size) off quadratic losses.

    Raises
    ------
    ValueError : as :class:`bilevel.Predicted`; ``runs`` below 10.

    Examples
    --------
    >>> import jax, bilevel as bl
    >>> case = bl.testing.ridge(seed=0)
    >>> estimator = bl.Forward(bl.SGD(0.05, batch_size=4), steps=300, average=200)
    >>> report = bl.check_noise(
    ...     case.problem, estimator, case.hyper, case.params, case.data, jax.random.key(0), runs=50
    ... )
    >>> report.ratio.shape
    (4,)
    """
    require_positive_int("check_noise", "runs", runs)
    require_positive("check_noise", "tol", tol)
    if runs < 10:
        raise ValueError(f"check_noise: runs must be at least 10 to know a spread, got {runs}.")
    theory = estimator if isinstance(estimator, Predicted) else Predicted(estimator)
    one, parts = theory.estimator, (hyper, params, data)
    # A bad estimate is this report's to tell.
    evidence = hypergradient(problem, theory, *parts, key, max_error=np.inf)[0].evidence

    def run(key: Array) -> Array:
        return ravel_pytree(hypergradient(problem, one, *parts, key)[0].grad)[0]

    grads = np.asarray(jax.vmap(run)(jax.random.split(key, runs)), float)
    # The spread of a sample deviation follows from the fourth moment, not from a normal law.
    apart = grads - grads.mean(0)
    spread = grads.std(0, ddof=1)
    fourth = np.maximum(np.mean(apart**4, 0) - spread**4, 0)
    doubt = np.sqrt(fourth / runs) / (2 * np.where(spread > 0, spread, 1))

    predicted = np.full_like(spread, np.nan)
    if evidence.standard_error is not None:
        predicted = np.asarray(ravel_pytree(evidence.standard_error)[0], float)
    predicted_bias = evidence.bias
    if predicted_bias is not None:
        predicted_bias = np.asarray(ravel_pytree(predicted_bias)[0], float)
    measured = grads.mean(0) - _exact(problem, hyper, params, data, key)
    error = spread / runs**0.5
    expected = measured if predicted_bias is None else predicted_bias
    columns = (predicted, spread, doubt, expected, measured, error)
    found = [_judge(*map(float, row), tol=tol) for row in zip(*columns, strict=True)]
    return NoiseReport(
        predicted=predicted,
        replicated=spread,
        uncertainty=doubt,
        predicted_bias=predicted_bias,
        measured_bias=measured,
        bias_uncertainty=error,
        agrees=np.array([not said for said in found]),
        verdicts=tuple("; ".join(said) or "agree" for said in found),
        runs=runs,
    )


def _judge(
    predicted: float,
    spread: float,
    doubt: float,
    expected: float,
    measured: float,
    error: float,
    *,
    tol: float,
) -> list[str]:
    """Return what is wrong with one hyperparameter's prediction, in words; empty if nothing is."""
    if not np.isfinite(spread):
        return ["the runs diverge: use a smaller step size"]
    if np.isinf(predicted) or np.isinf(expected):
        return [
            "no error bar: the step size is near or beyond the mean-square limit of the linear "
            "theory, or no minimum was found near the params; use a smaller step size or larger "
            "batches"
        ]
    said = []
    if predicted - spread > tol * spread + 4 * doubt:
        said.append(
            "less noise than predicted: the runs are not stationary yet (more steps), or the loss "
            "is far from quadratic within the noise (a smaller step size)"
        )
    elif spread - predicted > tol * spread + 4 * doubt:
        said.append(
            "more noise than predicted: the step size is too large for the linear theory, the "
            "window too short for influence values, or the start is not forgotten (more steps)"
        )
    if abs(measured - expected) > tol * max(abs(measured), abs(expected)) + 4 * error:
        said.append(
            "another mean than predicted: the start is not forgotten (more steps), or the bias is "
            "beyond first order in the step size (a smaller one, Richardson)"
        )
    return said


def _exact(problem: Problem, hyper: PyTree, params: PyTree, data: Data, key: Array) -> np.ndarray:
    """Return the hypergradient at the minimiser that Newton's method finds, ``[p]``."""
    solution = minimise(problem, hyper, params, data).params
    scale = 1 / max(float(norm(solution)), 1.0)
    still = Implicit(GradientDescent(1e-3 * scale), 1, linear=CG(tol=1e-10))
    estimate = hypergradient(problem, still, hyper, solution, data, key)[0]
    return np.asarray(ravel_pytree(estimate.grad)[0], float)

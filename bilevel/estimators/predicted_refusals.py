"""What :class:`bilevel.Predicted` has no theory for, each with what would do instead."""

from bilevel.core import INDEPENDENT, Data, Estimator, Relative, Schedule, count_examples
from bilevel.estimators.forward import Forward
from bilevel.estimators.implicit import Implicit
from bilevel.estimators.reverse import Reverse
from bilevel.noise.moments import count_epoch
from bilevel.solvers import SGD, GradientDescent, Solver

DENSE = 40  # the dense theory solves a system of that size squared


def require_covered(estimator: Estimator) -> None:
    """Raise unless the estimator reads one chain in a way that the theory follows."""
    name = type(estimator).__name__
    wrong = None
    if not isinstance(estimator, Forward | Reverse | Implicit):
        wrong = f"it covers Forward, Reverse and Implicit, not {name}"
    elif isinstance(estimator, Forward) and estimator.directions is not None:
        wrong = "directions=None is needed: random directions have a noise of their own"
    elif isinstance(estimator, Forward) and estimator.cross:
        wrong = "cross=False is needed: it follows one chain, not two"
    elif isinstance(estimator, Reverse) and estimator.truncate is not None:
        wrong = "truncate=None is needed: a truncated derivative is not at rest"
    elif isinstance(estimator, Implicit) and (estimator.damping is not None or estimator.bias):
        wrong = "Implicit(damping=None, bias=False) is needed: both are biases of another kind"
    elif isinstance(estimator, Implicit) and estimator.correct:
        wrong = "Implicit(correct=False) is needed: a Newton step is no step of its solver"
    elif estimator.outer_batch_size is not None:
        wrong = "outer_batch_size=None is needed: it has no theory for the noise of outer rows"
    if wrong is not None:
        raise ValueError(
            f"Predicted has no theory for this estimator: {wrong}. Replicated(estimator, n) "
            "measures the noise of any."
        )


def require_constant(solver: Solver | None) -> SGD | None:
    """Return the solver if it has noise, ``None`` if it is a full-batch one."""
    if isinstance(solver, GradientDescent) or (
        isinstance(solver, SGD) and solver.batch_size is None
    ):
        return None
    wrong = None
    if not isinstance(solver, SGD):
        wrong = f"the solver must be SGD, got {type(solver).__name__}"
    elif isinstance(solver.step_size, Schedule | Relative) or isinstance(solver.momentum, Schedule):
        wrong = "step size and momentum must be numbers: a schedule never comes to rest"
    elif solver.sampling == "stream":
        wrong = "sampling='stream' takes the rows in their order"
    if wrong is not None:
        raise ValueError(
            f"Predicted has no theory for this solver: {wrong}. Replicated(estimator, n) measures "
            "the noise of any."
        )
    assert isinstance(solver, SGD)
    return solver


def require_dense(size: int, window: int, sampling: str) -> None:
    """Raise where a prediction takes dense moments of more than ``DENSE`` entries."""
    independent = sampling in INDEPENDENT
    if size <= DENSE or (window and independent):
        return
    cure = (
        "Average the iterates, whose error bar takes products only: Forward(..., average=) or "
        "Implicit(..., average=). Or replicate."
        if independent
        else "Draw independent batches, SGD(..., sampling='iid'), or replicate."
    )
    what = "noise of a last iterate" if independent else "bias over shuffled epochs"
    raise ValueError(
        f"Predicted: the {what} takes dense moments of size {size}, and they are formed up to "
        f"{DENSE} (params and, unrolled, their derivatives; twice that with momentum). {cure}"
    )


def require_whole_epochs(estimator: Estimator, solver: SGD, data: Data) -> int:
    """Return the batch size of a run over epochs, validated to begin and end with its average."""
    size, n = solver.batch_size, count_examples(data.inner)
    assert size is not None
    batches = count_epoch("Predicted, sampling='epoch'", n, size)
    steps, average = getattr(estimator, "steps", 0), getattr(estimator, "average", 0)
    if not average or average % batches or steps % batches:
        raise ValueError(
            f"Predicted: over shuffled epochs of {batches} steps it knows the bias of an average "
            f"of whole epochs, got steps={steps}, average={average}. Take multiples of {batches}, "
            "or SGD(..., sampling='iid'); Replicated(estimator, n) measures the noise of any."
        )
    return size

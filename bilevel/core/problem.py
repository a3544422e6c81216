"""The problem: two losses, and the data that they are evaluated on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np

from bilevel.core.equation import Equation, Residual
from bilevel.core.precision import compute_in, require_compute_dtype
from bilevel.core.sparse import with_sparse_rows
from bilevel.spaces import Spaces
from bilevel.utils import (
    DataTree,
    Hyper,
    Number,
    Params,
    PyTree,
    Scalar,
    leading_axes,
    leaf_address,
    not_callable,
    register_node,
    require_finite,
)

Loss: TypeAlias = Callable[[Params, Hyper, DataTree], Scalar]
UserLoss: TypeAlias = Callable[..., PyTree]  # (params, hyper, batch[, model_state][, key])
Prox: TypeAlias = Callable[[Params, Hyper, Number], Params]


EVIDENCE = ("full", "auto", "off")


@dataclass(frozen=True)
class Problem:
    r"""A bilevel problem ``min_hyper outer(w*(hyper), hyper)``, ``w* = argmin_w inner(w, hyper)``.

    Both losses are pure functions ``(params, hyper, batch) -> ()``, means over the batch, and see
    data only through ``batch``. A ``Problem`` is static and hashable: make it once, outside loops.

    Parameters
    ----------
    inner, outer : the losses of the lower and of the upper level.
    start : ``(hyper, params) -> params``, the inner start point when it depends on ``hyper``
        (a learned initialisation). Every call then starts there: there is no warm start.
    prox : ``(params, hyper, step) -> params``, for a non-smooth part of the inner objective: its
        proximal map ``argmin_u step nonsmooth(u, hyper) + |u - params|^2 / 2``. ``inner`` is then
        the smooth part alone. Used by proximal solvers.
    quadratic : the inner loss is quadratic in ``params``, so that exact formulas apply.
    space : where ``hyper`` lives: a space of :mod:`bilevel.spaces`, or a tree of them that is a
        prefix of ``hyper``. Losses, estimators and results are in natural units; ``tune`` moves
        coordinates in which there is no constraint.
    evidence : how much estimators measure of their own error. ``"auto"``: what costs an eighth of
        the estimate, on a sample of the rows if need be; ``"full"``: on all rows, whatever it
        costs; ``"off"``: only what is free. The two verbs have the same keyword.
    stochastic : losses are random: both, ``start`` and ``running`` take a JAX key as their last
        argument (:func:`bilevel.loss_key` says which). An iterate and its derivative see the same.
    has_state : the inner loss returns ``(loss, new model state)``, and losses take the state after
        the batch, before a key; the outer loss sees the last one. The verbs have ``model_state=``.
        Derivatives go through it; ``jax.lax.stop_gradient`` in a loss stops them.
    has_aux : either loss may return side results as well, last in its tuple: ``estimate.aux``.
    running : ``(params, hyper, batch[, model_state][, key]) -> ()``, a loss over the trajectory.
        The outer loss is ``outer + mean_k running(params_k, ...)`` over the steps of a call, each
        with the params before the step, and the step's minibatch, model state and key.
    fixed_point, optimality : in place of ``inner``, what the inner solution solves:
        ``w = fixed_point(w, hyper, batch)``, or ``optimality(w, hyper, batch) = 0``, like
        ``params``. An equilibrium layer, a game, the conditions of a constrained problem: no loss
        need be behind them. For :class:`bilevel.Picard`, :class:`bilevel.Anderson`,
        :class:`bilevel.Newton` and solvers of plain steps; with ``Implicit`` and a linear solver
        that needs no symmetry (:class:`bilevel.GMRES`), ``Reverse`` or ``Forward``.
    compute_dtype : of the inner loss, such as ``jnp.bfloat16``; that of ``params`` where ``None``.
        Params and batch are cast for it; params, solver states, derivatives along the steps, the
        outer loss and the adjoint system of ``Implicit`` keep their dtype. Of an
        :class:`bilevel.OutputLoss` the model alone is cast, and the sum over rows is not.

    Raises
    ------
    TypeError : a loss that is no function. ValueError : not exactly one of ``inner``,
        ``fixed_point`` and ``optimality``; with the last two what belongs to a loss.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> def inner(w, log_penalty, batch):
    ...     X, y = batch
    ...     return jnp.mean((X @ w - y) ** 2) / 2 + jnp.exp(log_penalty) * jnp.sum(w**2) / 2
    >>> def outer(w, log_penalty, batch):
    ...     X, y = batch
    ...     return jnp.mean((X @ w - y) ** 2) / 2
    >>> problem = bl.Problem(inner, outer)
    """

    inner: UserLoss = None  # pyright: ignore[reportAssignmentType]
    outer: UserLoss = None  # pyright: ignore[reportAssignmentType]
    start: Callable[..., Params] | None = None
    prox: Prox | None = None
    quadratic: bool = False
    space: PyTree = None
    evidence: str = "auto"
    stochastic: bool = False
    has_state: bool = False
    has_aux: bool = False
    running: UserLoss | None = None
    fixed_point: Residual | None = None
    optimality: Residual | None = None
    compute_dtype: Any = None

    def __post_init__(self) -> None:
        """Validate the arguments, and make a tree of spaces hashable."""
        if self.space is not None:
            object.__setattr__(self, "space", Spaces.of(self.space))
        if self.evidence not in EVIDENCE:
            raise ValueError(f"evidence must be one of {EVIDENCE}, got {self.evidence!r}.")
        if self.fixed_point is not None or self.optimality is not None:
            _require_equation_alone(self)
            object.__setattr__(self, "inner", Equation(self.fixed_point, self.optimality))
        if self.compute_dtype is not None:
            require_compute_dtype(self.compute_dtype)
            object.__setattr__(self, "inner", compute_in(self.inner, self.compute_dtype))
        for name in ("inner", "outer"):
            if not callable(getattr(self, name)):
                raise TypeError(not_callable(f"Problem.{name}", getattr(self, name)))
        for name in ("start", "prox", "running", "fixed_point", "optimality"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(not_callable(f"Problem.{name}", getattr(self, name)))

    @property
    def exact(self) -> "Problem":
        """The same problem with an inner loss that computes in the dtype of the params."""
        if self.compute_dtype is None:
            return self
        return replace(self, inner=compute_in(self.inner, None), compute_dtype=None)

    @property
    def is_plain(self) -> bool:
        """Whether losses are functions of params, hyper and batch that return a number."""
        return not (self.stochastic or self.has_state or self.has_aux or self.running)

    @property
    def is_equation(self) -> bool:
        """Whether the inner problem is an equation, and no loss need be behind it."""
        return isinstance(self.inner, Equation)

    def require_inside(self, hyper: Hyper) -> None:
        """Raise ``ValueError`` where ``hyper`` is concrete and not inside its space."""
        if self.space is not None:
            self.space.require(hyper)


_OF_A_LOSS = ("prox", "quadratic", "stochastic", "has_state", "has_aux", "running", "compute_dtype")


def _require_equation_alone(problem: Problem) -> None:
    """Raise ``ValueError`` where an equation is given beside what belongs to a loss."""
    given = [name for name in ("fixed_point", "optimality") if getattr(problem, name) is not None]
    if problem.inner is not None and not isinstance(problem.inner, Equation):
        given.append("inner")
    if len(given) > 1:
        raise ValueError(
            f"Problem: {' and '.join(given)} are given, and each says what the inner solution is. "
            "Give one of inner, fixed_point and optimality."
        )
    if wrong := [name for name in _OF_A_LOSS if getattr(problem, name)]:
        raise ValueError(
            f"Problem({given[0]}=...) takes no {', '.join(wrong)}: it has no inner loss. Write "
            "what they stand for into the equation (a proximal map is a part of a fixed point)."
        )


@dataclass(frozen=True)
class Composite:
    """The inner loss as a solver sees it when the problem has a proximal part."""

    smooth: Loss
    prox: Prox

    def __call__(self, params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
        """Return the smooth part."""
        return self.smooth(params, hyper, batch)


def inner_loss(problem: Problem, smooth: Loss | None = None) -> Loss:
    """Return what solvers step on: ``problem.inner`` or a stand-in for it, with its prox."""
    smooth = problem.inner if smooth is None else smooth
    return smooth if problem.prox is None else Composite(smooth, problem.prox)


@dataclass(frozen=True)
class Data:
    """The examples of both levels: pytrees of arrays whose leading axis counts examples.

    Data is always an argument, never closed over. For one hyperparameter per example put
    ``jnp.arange(n)`` in ``inner`` and index ``hyper`` with it. For folds, seeds or tasks add one
    more leading axis everywhere and use ``jax.vmap``. Sparse matrices (SciPy's, JAX's ``BCOO``)
    become :class:`bilevel.SparseRows`. For data that do not fit there is :class:`bilevel.Stream`.

    Raises
    ------
    ValueError : a leaf holds NaN or infinity, or the leading axes of one level differ.

    Examples
    --------
    >>> import numpy as np, bilevel as bl
    >>> X, y = np.ones((5, 2)), np.ones(5)
    >>> data = bl.Data(inner=(X[:3], y[:3]), outer=(X[3:], y[3:]))
    """

    inner: DataTree
    outer: DataTree

    def __post_init__(self) -> None:
        """Check what is concrete; tracers and ``in_axes`` specifications pass through."""
        for level in ("inner", "outer"):
            rows = with_sparse_rows(level, getattr(self, level))
            object.__setattr__(self, level, rows)
            _check_level(level, rows)


register_node(Data, data_fields=["inner", "outer"], meta_fields=[])


def _check_level(level: str, tree: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [(path, leaf) for path, leaf in leaves if isinstance(leaf, np.ndarray | jax.Array)]
    lengths = {leaf_address(f"data.{level}", p): np.shape(x)[0] for p, x in arrays if np.ndim(x)}
    if len(set(lengths.values())) > 1:
        raise ValueError(leading_axes(level, lengths))
    for path, leaf in arrays:
        require_finite(f"data.{level}", path, leaf)


def count_examples(tree: PyTree) -> int:
    """Return the number of examples: the length of the leading axis of every leaf."""
    return jax.tree.leaves(tree)[0].shape[0]


def space_rows(problem: Problem, data: Data, most: int = 1024) -> Data:
    """Return the data, with ``most`` evenly spaced inner rows where there are twice as many.

    Who takes minibatches may not have the memory for the gradient over all rows. The unknowns of
    an equation may belong to rows, as the states of a layer do: all are needed.
    """
    every = count_examples(data.inner) // most
    if every < 2 or problem.is_equation:
        return data
    return replace(data, inner=jax.tree.map(lambda x: x[: every * most : every], data.inner))

"""Define a task: a bilevel problem on real data, and all that is needed to judge its outcome."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import bilevel as bl
from bilevel.utils import PyTree

Metrics = dict[str, float]


@dataclass(frozen=True)
class Task:
    """A problem with its data and start point, its measures and its competitors.

    Parameters
    ----------
    name : what a table calls it.
    problem, data : for :func:`bilevel.tune`, and so are
    hyper, params : where both levels start, in JAX's current floating-point type.
    metrics : ``(hyper, params) -> {name: value}`` on the test rows, of the model that a user would
        keep: fitted once more on training and validation rows together, with ``hyper``. The first
        name is the headline; less of it is better.
    baselines : ``() -> {name: metrics}``, what a user would run instead, on the same rows; computed
        when called, in float64.
    describe : ``hyper -> {name: value}``, a summary in natural units.
    exact : ``hyper -> (value, grad)`` of the outer loss at the exact inner minimiser, in float64
        whatever JAX's precision; ``None`` where there is no closed form.
    second : a second batch of validation rows, for early stopping by ``problem.outer``; ``None``
        where none were set aside.
    picture : ``(figure, hyper, params) -> None``, what was found, drawn into an empty matplotlib
        figure; ``None`` where there is nothing to see beyond the curves.
    model : ``(hyper, params) -> estimator`` of scikit-learn's kind, with ``predict`` for raw rows:
        the model that ``metrics`` judges; ``None`` where the result is no model.
    model_state : where the problem's model state begins, if it ``has_state``.
    notes : facts worth recording with a result, as plain numbers, strings, lists and dicts;
        ``has_minimiser: False`` where no error against one is to be printed.
    """

    name: str
    problem: bl.Problem
    data: bl.Data
    hyper: PyTree
    params: PyTree
    metrics: Callable[[PyTree, PyTree], Metrics]
    baselines: Callable[[], dict[str, Metrics]]
    describe: Callable[[PyTree], dict[str, float]]
    exact: Callable[[PyTree], tuple[Any, PyTree]] | None = None
    second: PyTree = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    picture: Callable[[Any, PyTree, PyTree], None] | None = None
    model: Callable[[PyTree, PyTree], Any] | None = None
    model_state: PyTree = None

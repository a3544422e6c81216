"""The one way to look inside nested estimators, and to rebuild them with other settings.

A wrapper holds the estimator it wraps in a field ``estimator``, as ``Replicated`` and ``Predicted``
do. Whoever asks for the innermost one, or changes its settings, does so here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bilevel.core import Estimator, ScalesWork, no_window


def inner_estimator(estimator: Estimator) -> Estimator | None:
    """Return the estimator that a wrapper holds; ``None`` for one that wraps none."""
    return getattr(estimator, "estimator", None)


def innermost_estimator(estimator: Estimator) -> Estimator:
    """Return the estimator inside all wrappers: itself if it wraps none."""
    inside = inner_estimator(estimator)
    return estimator if inside is None else innermost_estimator(inside)


def list_layers(estimator: Estimator) -> list[Estimator]:
    """Return the estimator and all that it wraps, the outermost first."""
    inside = inner_estimator(estimator)
    return [estimator] if inside is None else [estimator, *list_layers(inside)]


def map_innermost(estimator: Estimator, change: Callable[[Any], Estimator]) -> Estimator:
    """Return the same wrappers around ``change(innermost(estimator))``."""
    inside = inner_estimator(estimator)
    if inside is None:
        return change(estimator)
    return _replaced(estimator, {"estimator": map_innermost(inside, change)})


def scale_work(estimator: Estimator, multiple: int) -> Estimator:
    """Return the estimator with ``multiple`` times its inner work, which reduces its error.

    Raises
    ------
    ValueError : an estimator whose error no such number reduces.
    """
    if multiple == 1:
        return estimator

    def scale(inside: Estimator) -> Estimator:
        if isinstance(inside, ScalesWork):
            return inside.scaled(multiple)
        raise no_window(inside)

    return map_innermost(estimator, scale)


def _replaced(node: Any, changes: dict[str, Any]) -> Any:
    return replace(node, **changes)

"""Cases of which the first are tested at every change, and all by `make test-all`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def quick_cases(
    quick: int,
    names: str | Sequence[str],
    cases: Iterable[Any],
    *,
    ids: Iterable[str] | Callable[[Any], Any] | None = None,
) -> pytest.MarkDecorator:
    """Parametrize like pytest; the cases after the first ``quick`` are marked `extended`.

    For cases that take long and of which another adds little: one more solver, seed or precision.
    """
    one_name = isinstance(names, str) and "," not in names

    def marked(case: Any) -> Any:
        if not isinstance(case, type(pytest.param())):
            case = pytest.param(case) if one_name else pytest.param(*case)
        return case._replace(marks=[*case.marks, pytest.mark.extended])

    each = [case if i < quick else marked(case) for i, case in enumerate(cases)]
    return pytest.mark.parametrize(names, each, ids=ids)

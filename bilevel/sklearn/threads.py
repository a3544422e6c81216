"""One thread of the BLAS where its threads would wait for each other longer than they work."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SMALL = 1e9  # multiplications of one product of X with itself: a tenth of a second of one core


def limit_threads(fit: Callable[Concatenate[Any, Any, _P], _T]) -> Callable[..., _T]:
    """Return ``fit(self, X, ...)`` on one BLAS thread where X is small.

    Threads of OpenBLAS spin at the end of every call until the last has done its part. When
    another process holds a core that takes a slice of the scheduler's, thousands of times a fit.
    """

    @wraps(fit)
    def limited(self: Any, X: Any, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
        if len(shape) == 2 and shape[0] * shape[1] * min(shape) <= _SMALL:
            with take_one_thread():
                return fit(self, X, *args, **kwargs)
        return fit(self, X, *args, **kwargs)

    return limited


def take_one_thread() -> AbstractContextManager:
    """Return a context in which the BLAS takes one thread, for thousands of short calls."""
    return _controller().limit(limits=1, user_api="blas")


@cache
def _controller() -> ThreadpoolController:
    """Return the one that has looked for libraries: it takes a millisecond."""
    return ThreadpoolController()

"""The method that a plan is for: SGD with or without momentum, and how its batches are drawn."""

from dataclasses import dataclass

import numpy as np

from bilevel.solvers import SGD


@dataclass(frozen=True)
class Scheme:
    """SGD but for its step size and batch size; arguments as for :class:`bilevel.SGD`."""

    momentum: float | None = None
    nesterov: bool = False
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments, as SGD does."""
        if not isinstance(self.momentum, int | float | None):
            raise TypeError(
                f"plan: momentum must be a number or None, got {self.momentum!r}: a schedule has "
                "no stationary law."
            )
        self.make_solver(1.0, None)

    @property
    def mu(self) -> float:
        """Return the momentum as a number."""
        return self.momentum or 0.0

    @property
    def shuffles(self) -> bool:
        """Return whether batches walk through shuffled epochs."""
        return self.sampling == "epoch"

    def make_solver(self, step_size: float, batch_size: int | None) -> SGD:
        """Return it with a step size and a batch size."""
        return SGD(step_size, batch_size, self.momentum, self.nesterov, self.sampling)

    def describe(self) -> str:
        """Return its settings as they stand in a call of SGD, a comma before each."""
        text = "" if self.momentum is None else f", momentum={self.momentum:g}"
        text += ", nesterov=True" if self.nesterov else ""
        return text + ("" if self.sampling == "iid" else f", sampling={self.sampling!r}")

    def step_matrices(self, step_size: float) -> tuple[np.ndarray, np.ndarray]:
        """Return transition ``T [s, s]`` and gain ``L [s]``: :func:`bilevel.noise.rules.sgd`.

        In NumPy, so that a candidate compiles nothing.
        """
        if self.momentum is None:
            return np.ones((1, 1)), np.array([step_size])
        mu = self.momentum
        kept, seen = (mu**2, 1 + mu) if self.nesterov else (mu, 1.0)
        return np.array([[1.0, -step_size * kept], [0.0, mu]]), np.array([step_size * seen, -1.0])

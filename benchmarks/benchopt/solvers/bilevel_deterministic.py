"""`bilevel` on all data, with nothing to tune: implicit differentiation inside L-BFGS."""

import jax
import numpy as np
from benchmark_utils import constants
from benchmark_utils.bilevel_chord import Chord
from benchmark_utils.bilevel_problem import as_problem
from benchopt import BaseSolver
from benchopt.stopping_criterion import SufficientProgressCriterion
from scipy.optimize import minimize

import bilevel as bl

DENSE = 1000  # inner variables up to which the Hessian is factorised


class EnoughError(Exception):
    """The benchmark wants no more."""


class Solver(BaseSolver):
    """Hypergradients by `bilevel`, the outer step by SciPy's L-BFGS-B: no number to choose.

    ``trail`` keeps the full passes over both levels' data, callback by callback.
    """

    name = "bilevel"
    requirements = ["jax", "pip::bilevel", "scipy"]  # noqa: RUF012 - the benchmark's format
    parameters = {}  # noqa: RUF012
    stopping_criterion = SufficientProgressCriterion(
        patience=constants.PATIENCE, strategy="callback"
    )

    @staticmethod
    def get_next(stop_val):
        """Evaluate at every callback."""
        return stop_val + 1

    def set_objective(self, f_inner, f_outer, n_inner_samples, n_outer_samples, **start):
        """Build the problem, choose the estimator, compile."""
        n, m = n_inner_samples, n_outer_samples
        self.problem, self.data = as_problem(f_inner, f_outer, n, m, "full")
        self.passes = np.array([n, n, m]) / 64  # minibatches per gradient, product, outer gradient
        self.start = start["outer_var0"], start["inner_var0"]
        small = self.start[1].size <= DENSE
        self.estimator = Chord() if small else Chord(tol=1e-2, dense=False)
        self.call(self.start[0], None)

    def call(self, hyper, state):
        """Value, hypergradient, lower level."""
        return bl.hypergradient(
            self.problem,
            self.estimator,
            hyper,
            self.start[1],
            self.data,
            jax.random.key(0),
            state=state,
        )

    def run(self, callback):
        """L-BFGS-B, begun again where the rounding of float32 ends its line search."""
        self.outer_var, self.inner_var = self.start
        state, trail, calls = None, [0.0], 0.0
        x = np.asarray(self.outer_var, float)

        def value_and_gradient(x):
            nonlocal state, calls
            estimate, state = self.call(x.astype(np.float32), state)
            counts = estimate.evidence.counts
            calls += float(self.passes @ [counts.gradients, counts.hvps, 1])
            return float(estimate.value), np.asarray(estimate.grad, float)

        def accepted(x):
            self.outer_var, self.inner_var = x.astype(np.float32), state.params
            trail.append(calls)
            if not callback():
                raise EnoughError

        try:
            if not callback():
                raise EnoughError
            for _ in range(20):
                options = {"maxiter": 100_000, "maxfun": 100_000, "ftol": 0, "gtol": 0}
                found = minimize(
                    value_and_gradient,
                    x,
                    jac=True,
                    method="L-BFGS-B",
                    callback=accepted,
                    options=options,
                )
                x = found.x
        except EnoughError:
            pass
        self.trail = trail

    def get_result(self):
        """The two variables."""
        return {"inner_var": self.inner_var, "outer_var": self.outer_var}

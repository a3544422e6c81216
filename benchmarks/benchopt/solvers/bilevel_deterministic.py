"""`bilevel` on all data, with nothing to tune: implicit differentiation and `bl.outer.Auto`."""

import jax
import numpy as np
from benchmark_utils import constants
from benchmark_utils.bilevel_chord import Chord
from benchmark_utils.bilevel_problem import as_problem
from benchopt import BaseSolver
from benchopt.stopping_criterion import SufficientProgressCriterion

import bilevel as bl

DENSE = 1000  # inner variables up to which the Hessian is factorised


class Solver(BaseSolver):
    """Hypergradients and the outer step by `bilevel`: no number to choose.

    ``trail`` keeps the full passes over both levels' data, callback by callback.
    """

    name = "bilevel"
    requirements = ["jax", "pip::bilevel"]  # noqa: RUF012 - the benchmark's format
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
        self.advance(None)

    def advance(self, state):
        """One evaluation more."""
        return bl.tune(
            self.problem,
            self.estimator,
            bl.outer.Auto(),
            *self.start,
            self.data,
            steps=1,
            hooks=[bl.Blocks(1)],
            state=state,
            key=jax.random.key(0),
        )

    def run(self, callback):
        """Evaluate; the result is the point with the lowest value so far, and its params."""
        self.outer_var, self.inner_var = self.start
        state, lowest, self.trail = None, np.inf, [0.0]
        while callback():
            result = self.advance(state)
            state, seen = result.state, {k: float(v[0]) for k, v in result.history.items()}
            self.trail.append(self.trail[-1] + self.passes @ [seen["gradients"], seen["hvps"], 1])
            if seen["value"] < lowest:
                lowest = seen["value"]
                self.outer_var, self.inner_var = state.hyper, state.lower.params
            if result.diverged:
                break

    def get_result(self):
        """The two variables."""
        return {"inner_var": self.inner_var, "outer_var": self.outer_var}

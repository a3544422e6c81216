"""A preset of `bilevel.single_loop` inside benchmark_bilevel."""

import jax
from benchmark_utils import constants
from benchmark_utils.bilevel_problem import as_problem
from benchopt import BaseSolver
from benchopt.stopping_criterion import SufficientProgressCriterion

import bilevel as bl


class Solver(BaseSolver):
    """One of `bilevel`'s single-loop presets, with the benchmark's own names of settings."""

    name = "bilevel_single_loop"
    requirements = ["jax", "pip::bilevel"]  # noqa: RUF012 - the format of benchopt
    parameters = {  # noqa: RUF012
        "method": ["saba"],
        "step_size": [0.1],
        "outer_ratio": [1.0],
        "batch_size": [64],
        "period_frac": [None],
        "delta_lmbda": [None],
        "steps": [None],
        "eval_freq": [128],
        "random_state": [1],
    }
    stopping_criterion = SufficientProgressCriterion(
        patience=constants.PATIENCE, strategy="callback"
    )

    @staticmethod
    def get_next(stop_val):
        """Evaluate at every callback."""
        return stop_val + 1

    def set_objective(self, f_inner, f_outer, n_inner_samples, n_outer_samples, **start):
        """Build the problem and the run, and compile both."""
        n, m = n_inner_samples, n_outer_samples
        self.problem, self.data = as_problem(f_inner, f_outer, n, m, self.batch_size)
        self.start = start["outer_var0"], start["inner_var0"]
        more = {}
        if self.period_frac is not None:
            more["period"] = int((n + m) * self.period_frac / self.batch_size)
        if self.delta_lmbda is not None:
            more["growth"] = bl.Decay(self.delta_lmbda, 1 / 7)
        if self.steps is not None:  # moves of params and adjoint per move of the hyperparameters
            more["steps"] = self.steps
        self.estimator, self.outer = bl.single_loop.preset(
            self.method, self.step_size, self.outer_ratio, batch_size=1, sampling="epoch", **more
        )
        self.advance(None)

    def advance(self, state):
        """``eval_freq`` iterations more."""
        return bl.tune(
            self.problem,
            self.estimator,
            self.outer,
            *self.start,
            self.data,
            steps=self.eval_freq,
            hooks=[bl.Blocks(self.eval_freq)],
            state=state,
            key=None if state is not None else jax.random.key(self.random_state),
        )

    def run(self, callback):
        """Iterate; the arrays of a block are waited for, so that the clock is honest."""
        state = None
        self.outer_var, self.inner_var = self.start
        while callback():
            result = self.advance(state)
            state = result.state
            self.outer_var, self.inner_var = jax.block_until_ready((result.hyper, result.params))

    def get_result(self):
        """The two variables."""
        return {"inner_var": self.inner_var, "outer_var": self.outer_var}

"""Public test tools: a dense oracle, small problems, and what every estimator must satisfy."""

from bilevel.testing.conformance import CONFORMANCE
from bilevel.testing.oracle import dense_curvature, dense_hypergradient, dense_solution
from bilevel.testing.problems import Case, logistic, mlp, ridge

__all__ = [
    "CONFORMANCE",
    "Case",
    "dense_curvature",
    "dense_hypergradient",
    "dense_solution",
    "logistic",
    "mlp",
    "ridge",
]

"""Public test tools: a dense oracle, small problems, and what every estimator must satisfy."""

from bilevel.testing.conformance import CONFORMANCE as CONFORMANCE
from bilevel.testing.oracle import dense_curvature as dense_curvature
from bilevel.testing.oracle import dense_hypergradient as dense_hypergradient
from bilevel.testing.oracle import dense_solution as dense_solution
from bilevel.testing.problems import Case as Case
from bilevel.testing.problems import logistic as logistic
from bilevel.testing.problems import mlp as mlp
from bilevel.testing.problems import ridge as ridge

"""Exact recursions of the second moments of SGD and of its derivative, one process a file."""

from bilevel.noise.moments.affine import Affine
from bilevel.noise.moments.linearised import Linearised, linearise
from bilevel.noise.moments.process import Process, run
from bilevel.noise.moments.ridge import Ridge
from bilevel.noise.moments.rows import Rows
from bilevel.noise.moments.rules import Rule

__all__ = [
    "Affine",
    "Linearised",
    "Process",
    "Ridge",
    "Rows",
    "Rule",
    "linearise",
    "run",
]

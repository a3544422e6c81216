"""Exact recursions of the second moments of SGD and of its derivative, one process a file."""

from bilevel.noise.moments.process import Process, run

__all__ = ["Process", "run"]

"""Exact recursions of the second moments of SGD and of its derivative, one process a file."""

from bilevel.noise.moments.affine import Affine
from bilevel.noise.moments.linearised import Linearised, joint_gradient, linearise
from bilevel.noise.moments.process import Process, run
from bilevel.noise.moments.ridge import JointMoments
from bilevel.noise.moments.rows import require_shape
from bilevel.noise.moments.rules import Rule
from bilevel.noise.moments.shuffled import count_epoch, epoch_moments

__all__ = [
    "Affine",
    "JointMoments",
    "Linearised",
    "Process",
    "Rule",
    "count_epoch",
    "epoch_moments",
    "joint_gradient",
    "linearise",
    "require_shape",
    "run",
]

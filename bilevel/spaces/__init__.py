"""Where hyperparameters live: losses see natural units, the outer rule moves free coordinates.

``bl.Problem(inner, outer, space={"penalty": Log(), "mixture": Simplex()})`` names a space per leaf
of ``hyper``, or for a part of the tree, as ``in_axes`` of ``jax.vmap`` does.
"""

from bilevel.spaces.base import Free, Space, Spaces
from bilevel.spaces.groups import Simplex, Tied
from bilevel.spaces.intervals import Box, Log, Softplus
from bilevel.spaces.perturb import free_coordinates, in_natural_units, move_coordinates

__all__ = [
    "Box",
    "Free",
    "Log",
    "Simplex",
    "Softplus",
    "Space",
    "Spaces",
    "Tied",
    "free_coordinates",
    "in_natural_units",
    "move_coordinates",
]

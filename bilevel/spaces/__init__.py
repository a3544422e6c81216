"""Where hyperparameters live: losses see natural units, the outer rule moves free coordinates.

``bl.Problem(inner, outer, space={"penalty": Log(), "mixture": Simplex()})`` names a space per leaf
of ``hyper``, or for a part of the tree, as ``in_axes`` of ``jax.vmap`` does.
"""

from bilevel.spaces.base import Free as Free
from bilevel.spaces.base import Space as Space
from bilevel.spaces.base import Spaces as Spaces
from bilevel.spaces.groups import Simplex as Simplex
from bilevel.spaces.groups import Tied as Tied
from bilevel.spaces.intervals import Box as Box
from bilevel.spaces.intervals import Log as Log
from bilevel.spaces.intervals import Softplus as Softplus

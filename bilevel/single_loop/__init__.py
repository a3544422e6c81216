"""Stochastic bilevel methods: one formula, and an estimator for the direction of each variable.

SOBA, SABA, AmIGO and their kin are rows of ``presets.py``. They are estimators whose moves are so
cheap that they drive whole blocks of the outer loop themselves (``tuning.loop.DrivesBlocks``): so
this room stands on ``tuning``.
"""

from bilevel.single_loop.double_loop import DoubleLoop
from bilevel.single_loop.f2sa import F2SA
from bilevel.single_loop.first_order import BOME, PZOBO
from bilevel.single_loop.oracles import HIA, SHIA
from bilevel.single_loop.presets import PRESETS, preset
from bilevel.single_loop.rules import SGD, STORM, Momentum
from bilevel.single_loop.single_loop import SingleLoop
from bilevel.single_loop.variance import PAGE, SAGA, SARAH, SVRG

__all__ = [
    "BOME",
    "F2SA",
    "HIA",
    "PAGE",
    "PRESETS",
    "PZOBO",
    "SAGA",
    "SARAH",
    "SGD",
    "SHIA",
    "STORM",
    "SVRG",
    "DoubleLoop",
    "Momentum",
    "SingleLoop",
    "preset",
]

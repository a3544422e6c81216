"""Stochastic bilevel methods: one formula, and an estimator for the direction of each variable."""

from bilevel.single_loop.double_loop import DoubleLoop as DoubleLoop
from bilevel.single_loop.engine import SingleLoop as SingleLoop
from bilevel.single_loop.f2sa import F2SA as F2SA
from bilevel.single_loop.first_order import BOME as BOME
from bilevel.single_loop.first_order import PZOBO as PZOBO
from bilevel.single_loop.oracles import HIA as HIA
from bilevel.single_loop.oracles import SHIA as SHIA
from bilevel.single_loop.presets import PRESETS as PRESETS
from bilevel.single_loop.presets import preset as preset
from bilevel.single_loop.rules import SGD as SGD
from bilevel.single_loop.rules import STORM as STORM
from bilevel.single_loop.rules import Momentum as Momentum
from bilevel.single_loop.variance import PAGE as PAGE
from bilevel.single_loop.variance import SAGA as SAGA
from bilevel.single_loop.variance import SARAH as SARAH
from bilevel.single_loop.variance import SVRG as SVRG

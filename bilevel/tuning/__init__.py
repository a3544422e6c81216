"""The outer loop: ``tune`` (one call), ``Loop`` (the compiled steps), and hooks that watch it.

A step moves ``hyper`` by the estimate of the step before (the first one does not move), then
estimates there; its row of the history belongs to the ``hyper`` it was estimated at. What a run
does beside its steps (record, stop early, double the inner work) is a hook in the compiled loop.
"""

from bilevel.tuning.adaptive import Adaptive
from bilevel.tuning.convergence import Convergence
from bilevel.tuning.diagnosis import DivergenceWarning
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.ending import compare_points
from bilevel.tuning.history import ROW, HistoryRows, columns_of, unwritten_rows, write_row
from bilevel.tuning.hooks import Blocks, Hook, Record, add_convergence
from bilevel.tuning.loop import Block, Loop
from bilevel.tuning.restarts import Restarts
from bilevel.tuning.state import Divergence, Result, State, Step, Stop

__all__ = [
    "ROW",
    "Adaptive",
    "Block",
    "Blocks",
    "Convergence",
    "Divergence",
    "DivergenceWarning",
    "EarlyStopping",
    "HistoryRows",
    "Hook",
    "Loop",
    "Record",
    "Restarts",
    "Result",
    "State",
    "Step",
    "Stop",
    "add_convergence",
    "columns_of",
    "compare_points",
    "unwritten_rows",
    "write_row",
]

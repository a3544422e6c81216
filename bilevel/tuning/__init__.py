"""The outer loop: one step, the compiled loop, what it records and what makes it stop."""

from bilevel.tuning.adaptive import Adaptive
from bilevel.tuning.diagnosis import DivergenceWarning
from bilevel.tuning.divergence import Divergence
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.history import ROW, HistoryRows, columns_of, unwritten_rows, write_row
from bilevel.tuning.hooks import Hook, Record, Step
from bilevel.tuning.loop import Block, Loop
from bilevel.tuning.options import Blocks
from bilevel.tuning.restarts import Restarts
from bilevel.tuning.result import Result
from bilevel.tuning.state import State, Stop, step_keys

__all__ = [
    "ROW",
    "Adaptive",
    "Block",
    "Blocks",
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
    "columns_of",
    "step_keys",
    "unwritten_rows",
    "write_row",
]

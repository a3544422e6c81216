"""What a search may choose, told apart from what is fixed; in the words of Hydra's sweeps."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import OverrideParseException

from experiments.common.errors import BadInputError

Entry = dict[str, Any]


def sweeps(changes: list[str]) -> tuple[list[str], dict[str, Entry]]:
    """`(fixed, space)`: changes that are no sweep, and for each that is one what it may be.

    An entry has a `kind`: `choice` with `values`, or `number` with `low`, `high`, `step`, `log`
    and `integer`.

    Raises
    ------
    BadInputError : what Hydra cannot read, a sweep over other things than plain values.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(changes)
    except OverrideParseException as error:
        raise BadInputError(str(error)) from error
    fixed, space = [], {}
    for override in parsed:
        if override.is_sweep_override():
            prefix = "+" if override.is_add() else ""
            space[prefix + override.get_key_element().lstrip("+")] = _entry(override)
        else:
            fixed.append(override.input_line or "")
    return fixed, space


def canonical(changes: list[str]) -> dict[str, str]:
    """Name -> value as the jobs of a sweep are told; of several for one name, the last."""
    parsed = OverridesParser.create().parse_overrides(changes)
    return {o.get_key_element(): o.get_value_element_as_str() for o in parsed}


def _entry(override: Any) -> Entry:
    sweep = override.value()
    log = "log" in sweep.tags
    number: Entry = {"kind": "number", "step": None, "log": log}
    if isinstance(sweep, IntervalSweep):
        integer = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        return number | {"low": sweep.start, "high": sweep.end, "integer": integer}
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        integer = all(isinstance(value, int) for value in values)
        entry = number | {"low": values[0], "high": values[-1], "integer": integer}
        return entry if log else entry | {"step": sweep.step}
    if isinstance(sweep, ChoiceSweep):
        values = [getattr(value, "text", value) for value in sweep.list]  # quoted or not
        if all(isinstance(value, str | int | float | bool) for value in values):
            return {"kind": "choice", "values": values}
    raise BadInputError(
        f"{override.input_line}: expected interval, range or choice of plain values"
    )

"""What a search may choose, told apart from what is fixed; in the words of Hydra's sweeps."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import OverrideParseException

from experiments.common.errors import BadInputError


def sweeps(changes: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return `(fixed, space)`: changes that are no sweep, and Optuna's distribution of each other.

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
            space[prefix + override.get_key_element().lstrip("+")] = _distribution(override)
        else:
            fixed.append(override.input_line or "")
    return fixed, space


def canonical(changes: list[str]) -> dict[str, str]:
    """Return name -> value as the jobs of a sweep are told; of several for one name, the last."""
    parsed = OverridesParser.create().parse_overrides(changes)
    return {o.get_key_element(): o.get_value_element_as_str() for o in parsed}


def _distribution(override: Any) -> Any:
    """Return what Hydra's syntax has said, in Optuna's words."""
    from optuna import distributions as known  # pyright: ignore[reportMissingImports]

    sweep = override.value()
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        integer = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        kind: Any = known.IntDistribution if integer else known.FloatDistribution
        return kind(sweep.start, sweep.end, log=log)
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        integer = all(isinstance(value, int) for value in values)
        kind: Any = known.IntDistribution if integer else known.FloatDistribution
        step = {} if log else {"step": sweep.step}
        return kind(values[0], values[-1], log=log, **step)
    if isinstance(sweep, ChoiceSweep):
        values: Any = [getattr(value, "text", value) for value in sweep.list]  # quoted or not
        if all(isinstance(value, str | int | float | bool) for value in values):
            return known.CategoricalDistribution(values)
    raise BadInputError(
        f"{override.input_line}: expected interval, range or choice of plain values"
    )

"""What a `result.json` holds, checked field by field: it may be half written, or be anybody's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.common.errors import BadInputError, DamagedError

RESULT = "result.json"
MODEL = "model"  # the folder of what a run predicts with
FINISHED = ("completed", "unreliable")  # with all their steps, and numbers to compare
ENDED_AS = (*FINISHED, "diverged")
PRUNED = "pruned"  # by the search of which it is a trial; outside of it the run goes on
LARGEST = 2**26  # bytes; a result with a number for each of a million columns has half of it
_NEEDED = ("status", "choices", "overrides")
_NEEDED_AT_THE_END = (
    *("settings", "task", "seed", "steps", "test_metrics", "counts", "seconds", "compile_seconds"),
)
# What a terminal or an encoder takes for a command: control characters, halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _or_null(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _named(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _anything(value: Any) -> bool:
    del value
    return True


_MEASURED = _or_null(_number)  # what is not finite is null
_NODE = _named(_anything)
FIELDS: dict[str, Callable[[Any], bool]] = {
    "status": _text,
    "choices": _named(_text),
    "overrides": _list_of(_text),
    "task": _text,
    "seed": _count,
    "steps": _count,
    "settings": _NODE,
    "value": _MEASURED,
    "value_start": _MEASURED,
    "seconds": _number,
    "compile_seconds": _number,
    "test_metrics": _named(_MEASURED),
    "baselines": _named(_named(_MEASURED)),
    "hyper_summary": _named(_MEASURED),
    "counts": _named(_count),
    "message": _or_null(_text),
    "command": _or_null(_text),
    "error": _text,
    "traceback": _text,
    "relative_error": _MEASURED,
    "error_of_largest": _MEASURED,
    "unknown": _list_of(_text),
    "process": _NODE,
    "evidence": _NODE,
    "versions": _NODE,
    "versions_before": _list_of(_NODE),
    "notes": _NODE,
    "coefficients": _NODE,
}


_ABOUT: dict[str, Callable[[Any], bool]] = {
    "settings": _NODE,
    "seconds": _number,
    "compile_seconds": _number,
    "checks": _list_of(lambda check: isinstance(check, dict) and _count(check.get("step"))),
    "message": _or_null(_text),
}


def is_about_run(about: Any) -> bool:
    """Whether this is what the checkpoint of a single run says of it, field by field."""
    fields = about.items() if isinstance(about, dict) else ()
    known = {name: value for name, value in fields if name in _ABOUT}
    return len(known) == len(_ABOUT) and all(_ABOUT[name](known[name]) for name in known)


def read_result(path: Path) -> dict[str, Any]:
    """What a `result.json` holds; in its texts, what a terminal would obey is replaced.

    Raises
    ------
    DamagedError : it is no JSON, or not what this program writes.
    BadInputError : it cannot be read.
    """
    try:
        if not path.is_file():  # a pipe or a device may hold more than there is memory
            raise DamagedError(f"{path}: this is no file.")
        if (size := path.stat().st_size) > LARGEST:
            raise DamagedError(f"{path}: this is no result of a run, {size / 2**20:.0f} MiB large.")
        result = cleaned(json.loads(path.read_text(encoding="utf-8")))
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:  # of the text's encoding too; nested too deep
        raise DamagedError(f"{path}: this is no JSON ({error}).") from error
    except OSError as error:
        raise BadInputError(f"{path}: this cannot be read ({error.strerror}).") from error
    if not isinstance(result, dict):
        raise DamagedError(f"{path}: this is no result of a run, but a {type(result).__name__}.")
    needed = _NEEDED
    if result.get("status") in (*ENDED_AS, PRUNED):
        needed += _NEEDED_AT_THE_END
    for name in needed:
        if name not in result:
            raise DamagedError(f"{path}: this is no result of a run: {name} is missing.")
    for name, fits in FIELDS.items():
        if name in result and not fits(result[name]):
            raise DamagedError(
                f"{path}: this is no result of a run: {name} is {str(result[name])[:60]!r}."
            )
    peak = result.get("process", {}).get("peak_memory_mib")
    if not _MEASURED(peak) or (result["status"] in FINISHED and not result["test_metrics"]):
        raise DamagedError(f"{path}: this is no result of a run: it lacks memory or test metrics.")
    return result


def cleaned(value: Any) -> Any:
    """The same with control characters and halves of characters replaced in every text."""
    if isinstance(value, dict):
        return {_UNPRINTABLE.sub("�", key): cleaned(child) for key, child in value.items()}
    if isinstance(value, list):
        return [cleaned(child) for child in value]
    return _UNPRINTABLE.sub("�", value) if isinstance(value, str) else value

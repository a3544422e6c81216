"""What is said when a sweep has ended: how many of its runs are unreliable, and which."""

from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.common.errors import BadInputError
from experiments.storage.result_file import RESULT, read_result


class Ending(Callback):
    """Hydra's callback that remembers the folder of a sweep when it begins.

    At its end Hydra calls nobody if a job has failed, and it is then that there is most to say.
    """

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember where the sweep writes."""
        del kwargs
        Ending.folder = Path(str(config.hydra.sweep.dir))


def conclude() -> str | None:
    """Count and name the failed and the unreliable runs of the sweep of this process, if any."""
    folder, Ending.folder = Ending.folder, None
    if folder is None:
        return None
    results = []
    for path in sorted(folder.rglob(RESULT)):
        try:
            results.append(read_result(path) | {"folder": path.parent.relative_to(folder)})
        except BadInputError:  # of a run that is being made, or was killed
            continue
    said = []
    if failed := [result for result in results if result["status"] == "failed"]:
        lines = [f"  {r['folder']}: {_first_line(r.get('error', ''))}" for r in failed]
        head = f"{len(failed)} of {len(results)} runs failed, in {folder}:"
        said.append("\n".join([head, *lines]))
    if bad := [result for result in results if result["status"] == "unreliable"]:
        of = f"{len(bad)} of {len(results)} runs {_are(bad)} unreliable"
        said.append(f"{of}, the last hypergradient is known to be wrong:\n{name_runs(bad)}")
    return "\n" + "\n\n".join(said) if said else None


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:300]


def of_many(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return status, message and mean value of runs that were one program."""
    n = len(results)
    if texts := [result["message"] for result in results if result["status"] == "diverged"]:
        return {"status": "diverged", "message": f"{len(texts)} of {n} runs diverged. {texts[0]}"}
    if bad := [result for result in results if result["status"] == "unreliable"]:
        text = f"{len(bad)} of {n} runs {_are(bad)} unreliable. {bad[0]['message']}"
        return {"status": "unreliable", "message": f"{text}\n{name_runs(bad)}"}
    value = sum(result["value"] for result in results) / n
    return {"status": "completed", "message": None, "value": value}


def name_runs(results: list[dict[str, Any]]) -> str:
    """Return a line for each run: which, and by how much its hypergradient is wrong."""
    return "\n".join(
        f"  {result.get('folder') or ' '.join(result['overrides'])}: "
        f"{percent(result['relative_error'])}"
        for result in results
    )


def _are(some: list[Any]) -> str:
    return "is" if len(some) == 1 else "are"


def percent(share: float | None) -> str:
    """Two digits; what is worthless is infinite, in a file null."""
    if share is None or share == float("inf"):
        return "worthless"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"

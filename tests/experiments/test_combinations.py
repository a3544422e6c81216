"""A dozen random combinations of the nouns: each runs, or is refused with a sentence."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiments import tiny
from tests.experiments.combinations import CONF, GROUPS, Outcome, attempt, draw, judge

DOZEN = [*draw(12, tasks=("tiny",))]


def tried(asked: tuple[str, ...], leaves: Path, folder: Path) -> Outcome:
    return attempt(asked, folder, "--config-dir", str(leaves), "task.n=70", "compile_cache=null")


@pytest.mark.parametrize("asked", DOZEN, ids=" ".join)
def test_combination_runs_or_is_refused_with_a_sentence(
    asked: tuple[str, ...], leaves: Path, tmp_path: Path
) -> None:
    found = tried(asked, leaves, tmp_path / "run")
    assert found.wrong is None, found
    assert found.status in ("completed", "unreliable", "refused", "diverged")
    if found.status == "refused":
        said = found.said.lower()
        groups, choices = zip(*(noun.split("=") for noun in asked), strict=True)
        named = [*choices, *(f"{group}." for group in groups), "`"]
        assert any(name in said for name in named), found.said


def test_main_job_is_one_that_runs(leaves: Path, tmp_path: Path) -> None:
    asked = ("task=tiny", "solver=sgd", "estimator=forward", "outer=auto")
    assert tried(asked, leaves, tmp_path / "run").status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("asked", [*draw(30)], ids=" ".join)
def test_combination_on_bundled_data(asked: tuple[str, ...], tmp_path: Path) -> None:
    assert attempt(asked, tmp_path / "run").wrong is None


def test_draws_follow_from_their_numbers() -> None:
    assert [*draw(3, 5)] == [*draw(8)][5:]
    seen = {choice for asked in draw(300) for choice in asked}
    for group in GROUPS:
        assert len([c for c in seen if c.startswith(f"{group}=")]) == len(
            [*CONF.glob(f"{group}/*.yaml")]
        )


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    ({"status": "completed", "value": None, "test_metrics": {}}, 0, "", "numbers that are none"),
    ({"status": "completed", "value": 1.0, "test_metrics": {"m": None}}, 0, "", "that are none"),
    ({"status": "failed", "error": "TypeError: x"}, 1, "", "in place of a sentence"),
    ({"status": "failed", "error": "a sentence"}, 2, "", "with exit 2"),
    ({"status": "diverged", "error": ""}, 2, "Traceback (most", "a trace is printed"),
]


@pytest.mark.parametrize(("result", "code", "said", "words"), WRONG)
def test_what_is_wrong_is_seen(
    result: dict[str, Any], code: int, said: str, words: str, tmp_path: Path
) -> None:
    from experiments.common.files import write_json

    write_json(tmp_path / "result.json", result)
    found: Outcome = judge(("task=x",), code, said, tmp_path)
    assert words in str(found.wrong)


@pytest.fixture(autouse=True)
def installed() -> None:
    tiny.install()

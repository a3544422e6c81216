"""Configuration is not code: hostile leaves, results and settings run nothing and write nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.allowed import allowed
from experiments.cli.targets import instantiate, locate, refuse_foreign
from experiments.cli.trust import needed, refuse_untrusted
from experiments.common.errors import BadInputError
from tests.experiments.conftest import Command
from tests.marks import quick_cases

# What each attempt would do if it were run: make this file.
CANARY = "canary"
TOUCH = f"touch {CANARY}"
HYDRA = "a leaf may not set hydra"
SAID = "a leaf may not set"
TINY = "_target_: tasks.tiny.tiny\n"
GLOBAL = "# @package _global_\n"
CUSTOM = "_target_: tasks.custom.custom\n"
HANDLER = "{version: 1, handlers: {h: {'()': os.mkdir, path: canary}}, root: {handlers: [h]}}"

SYSTEM = "{_target_: os.mkdir, path: canary}"

LEAVES = {
    "a folder is deleted": ("_target_: flax.io.rmtree\npath: conf\n", "is not allowed"),
    "a file is written": ("_target_: flax.io.write\n", "is not allowed"),
    "a shell": (f"_target_: os.system\ncommand: {TOUCH}\n", "is not allowed"),
    "a process": ("_target_: subprocess.Popen\nargs: [touch, canary]\n", "is not allowed"),
    "an expression": ("_target_: builtins.eval\n_args_: ['1']\n", "is not allowed"),
    "a program": ("_target_: builtins.exec\n_args_: [x=1]\n", "is not allowed"),
    "Hydra's own": ("_target_: hydra.utils.call\nconfig: {}\n", "is not allowed"),
    "Hydra's method": ("_target_: hydra.utils.get_method\npath: os.system\n", "is not allowed"),
    "what a module borrowed": ("_target_: bilevel.core.problem.np.save\n", "is not allowed"),
    "a module of ours": ("_target_: experiments.run.main\n", "is not allowed"),
    "a function of tasks": ("_target_: tasks.datasets.openml.read\ndata: x\n", "is not allowed"),
    "a private function": ("_target_: tasks.custom._find\nname: os:system\n", "is not allowed"),
    "a verb": ("_target_: bilevel.tune\n", "is not allowed"),
    "a room": ("_target_: bilevel.testing.check_solver\n", "is not allowed"),
    "jax": ("_target_: jax.config.update\n", "is not allowed"),
    "numpy": ("_target_: numpy.load\nfile: a.npy\n", "is not allowed"),
    "pickle": ("_target_: pickle.loads\n", "is not allowed"),
    "import": ("_target_: importlib.import_module\nname: antigravity\n", "is not allowed"),
    "no name": ("_target_: 3\n", "is not allowed"),
    "a list": ("_target_: [os.system]\n", "is not allowed"),
    "nested": (f"{TINY}n: {SYSTEM}\n", "is not allowed"),
    "in a list": (f"{TINY}n: [{SYSTEM}]\n", "is not allowed"),
    "deep in lists": (f"{TINY}n: [[{{a: [{SYSTEM}]}}]]\n", "is not allowed"),
    "partial": (f"{TINY}n: {{_target_: os.system, _partial_: true}}\n", "is not allowed"),
    "a name by reference": (
        f"_target_: ${{.name}}\nname: os.system\ncommand: {TOUCH}\n",
        "is not allowed",
    ),
    "a name that is decoded": ("_target_: ${oc.decode:os.system}\n", "is not allowed"),
    "a node that is made": (f'{TINY}n: "${{oc.create:{SYSTEM}}}"\n', "is not allowed"),
    "kept from recursion": (f"{TINY}_recursive_: false\n", "there is no such key"),
    "another conversion": (f"{TINY}_convert_: object\n", "there is no such key"),
    "module by name": (
        f"{CUSTOM}function: os:system\nsettings: {{command: {TOUCH}}}\n",
        "nobody trusts",
    ),
    "file by name": (f"{CUSTOM}function: evil.py:make\n", "does not name the file"),
    "file, trusted by the leaf": (
        f"{CUSTOM}function: evil.py:make\n_trust_: [evil.py]\n",
        "no such key",
    ),
    "function by place": (f"{CUSTOM}_args_: ['os:system']\n", "by name"),
    "function of a part": (f"{CUSTOM}_partial_: true\nfunction: os:system\n", "by name"),
    "task within a task": (
        f"{TINY}n: {{_target_: tasks.custom.custom, function: 'os:system'}}\n",
        "is a task",
    ),
    "trust": (f"{GLOBAL}trust: [os]\ntask: {{_target_: os.system, command: {TOUCH}}}\n", SAID),
    "trust all": (f"{GLOBAL}trust: ['*', os, '']\n", SAID),
    "compiled programs": (f"{GLOBAL}compile_cache: canary\n", SAID),
    "another folder": (f"{GLOBAL}resume: conf\n", SAID),
    "callback": (f"{GLOBAL}hydra: {{callbacks: {{x: {SYSTEM}}}}}\n", HYDRA),
    "log handler": (f"{GLOBAL}hydra: {{job_logging: {HANDLER}}}\n", HYDRA),
    "hydra's log handler": (f"{GLOBAL}hydra: {{hydra_logging: {HANDLER}}}\n", HYDRA),
    "launcher": (f"{GLOBAL}hydra: {{launcher: {{_target_: os.mkdir, path: canary}}}}\n", HYDRA),
    "sweeper": (f"{GLOBAL}hydra: {{sweeper: {{_target_: os.mkdir, path: canary}}}}\n", HYDRA),
    "environment": (f"{GLOBAL}hydra: {{job: {{env_set: {{LD_PRELOAD: evil.so}}}}}}\n", HYDRA),
    "place": (f"{GLOBAL}hydra: {{run: {{dir: canary}}}}\n", HYDRA),
    "working folder": (f"{GLOBAL}hydra: {{job: {{chdir: true}}}}\n", HYDRA),
    "searched folders": (f"{GLOBAL}hydra: {{searchpath: ['file://.']}}\n", "searchpath"),
    "sweep": (f"{GLOBAL}hydra: {{mode: MULTIRUN}}\n", HYDRA),
    "package of hydra": (f"# @package hydra.callbacks\nx: {SYSTEM}\n", HYDRA),
    "package of a part": ("# @package hydra.job_logging\nversion: 1\n", HYDRA),
    "choice of a launcher": (f"{GLOBAL}defaults:\n  - override /hydra/launcher: joblib\n", SAID),
    "choice of logging": (f"{GLOBAL}defaults:\n  - override /hydra/job_logging: stdout\n", SAID),
    "another leaf as hydra": (f"{GLOBAL}defaults:\n  - /task@hydra.callbacks: tiny\n", HYDRA),
    "pickle in YAML": ("!!python/object/apply:os.system ['touch canary']\n", "python/object"),
    "object in YAML": (f"{TINY}n: !!python/name:os.system ''\n", "python/name"),
}  # fmt: skip


@pytest.fixture
def evil(leaves: Path, tmp_path: Path) -> Path:
    """The leaf task=evil, and a file evil.py that would make the canary when it is read."""
    (tmp_path / "evil.py").write_text(f"open({CANARY!r}, 'w')\n")
    return leaves / "task" / "evil.yaml"


@quick_cases(12, ("text", "words"), LEAVES.values(), ids=LEAVES)
def test_hostile_leaf_is_refused(
    command: Command, evil: Path, tmp_path: Path, text: str, words: str
) -> None:
    evil.write_text(text)
    outcome = command("task=evil", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 1
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / CANARY).exists()
    assert evil.exists()


def test_escaped_reference_is_not_resolved_a_second_time() -> None:
    node = {"_target_": "bilevel.outer.Polyak", "lower": "${oc.create:{_target_: os.getcwd}}"}
    node |= {"scaling": 1.0, "longest": 1.0}
    made = None
    try:
        made = instantiate(node, "outer")
    except (ValueError, TypeError):
        return
    assert made.lower == node["lower"]


SETTINGS: dict[str, Any] = {
    "target": ("solver", {"_target_": "os.system", "command": TOUCH}),
    "nested target": ("solver", {"_target_": "bilevel.SGD", "step_size": {"_target_": "os.abort"}}),
    "outer": ("outer", {"_target_": "flax.io.rmtree", "path": "."}),
    "estimator": ("estimator", {"_target_": "shutil.rmtree", "path": "."}),
    "function": ("task", {"_target_": "tasks.custom.custom", "function": "os:system"}),
    "file": ("task", {"_target_": "tasks.custom.custom", "function": "evil.py:make"}),
    "no node": ("task", [1, 2]),
    "text for a node": ("outer", "os.system"),
    "vmap": ("vmap", {"seeds": 3}),
    "vmap that is none": ("vmap", "os.system"),
    "every": ("every", "often"),
    "seed": ("seed", {"a": 1}),
    "mesh": ("mesh", 3),
    "precision": ("precision", "float8"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_result_with_hostile_settings_is_refused(
    command: Command, evil: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "run"
    assert command(f"hydra.run.dir={folder}", "steps=1").status == 0
    key, value = SETTINGS[name]
    result = json.loads((folder / "result.json").read_text())
    trusting = {"trust": ["os", "evil.py", "shutil"], "compile_cache": str(tmp_path / CANARY)}
    result["settings"] |= {key: value} | trusting
    (folder / "result.json").write_text(json.dumps(result))
    outcome = command(f"resume={folder}", "steps=2", "compile_cache=null", quick=[])
    assert outcome.status == 1
    assert "Traceback" not in outcome.err + outcome.out
    assert not (tmp_path / CANARY).exists()
    assert evil.parent.is_dir()


def test_compiled_programs_of_a_result_are_not_read(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert command(f"hydra.run.dir={folder}", "steps=1").status == 0
    result = json.loads((folder / "result.json").read_text())
    result["settings"]["compile_cache"] = str(tmp_path / CANARY)
    (folder / "result.json").write_text(json.dumps(result))
    assert command(f"resume={folder}", "steps=2", "compile_cache=null", quick=[]).status == 0
    assert not (tmp_path / CANARY).exists()


OWN = """
import jax.numpy as jnp
import bilevel as bl

def loss(w, h, batch):
    return jnp.mean((batch[0] * w - batch[1]) ** 2) / 2

def inner(w, h, batch):
    return loss(w, h, batch) + jnp.exp(h) * w**2 / 2

def make(seed=0):
    x = jnp.linspace(-1.0, 1.0, 20)
    data = bl.Data(inner=(x, x), outer=(x, x + 0.1))
    return bl.Problem(inner, loss), data, jnp.asarray(-1.0), jnp.asarray(0.0)
"""


def test_file_of_the_command_line_is_run_and_going_on_with_it_needs_trust(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    folder = tmp_path / "run"
    own = ["task=custom", "task.function=mine.py:make", "steps=2", "compile_cache=null"]
    own += ["estimator.steps=50", "solver.batch_size=5", "plot=false"]
    assert command(f"hydra.run.dir={folder}", *own, quick=[]).status in (0, 4)
    outcome = command(f"resume={folder}", "steps=3", "compile_cache=null", quick=[])
    assert outcome.status == 1
    assert "add trust=[mine.py]" in outcome.err
    again = command(
        f"resume={folder}", "steps=3", "compile_cache=null", "trust=[mine.py]", quick=[]
    )
    assert again.status in (0, 4)
    assert needed(json.loads((folder / "result.json").read_text())) == ["mine.py"]


def test_module_needs_trust_even_on_the_command_line(command: Command) -> None:
    outcome = command("task=custom", "task.function=os:getcwd", quick=[])
    assert outcome.status == 1
    assert "add trust=[os]" in outcome.err
    outcome = command("task=custom", "task.function=os:getcwd", "trust=[os]", quick=[])
    assert "os:getcwd returned str" in outcome.err  # it was called


def test_pickle_of_hydras_is_not_read(command: Command) -> None:
    outcome = command("--experimental-rerun=config.pickle")
    assert outcome.status == 1
    assert "pickle" in outcome.err


def test_trusted_module_may_be_a_target() -> None:
    node = {"_target_": "os.path.basename", "p": "/a/b"}
    assert instantiate(node, "task", ["os.path"]) == "b"
    with pytest.raises(BadInputError, match=r"trust=\[os.path\]"):
        instantiate(node, "task", ["os"])


def test_every_allowed_name_makes_something_of_its_own_package() -> None:
    roots = {"optax": {"optax", "functools"}, "flax": {"flax", "jax"}}
    made = 0
    for name in allowed():
        try:
            found = locate(name, "here")
        except BadInputError:  # a constant or a type among the names of a facade
            continue
        root = name.partition(".")[0]
        assert found.__module__.partition(".")[0] in roots.get(root, {root}), name
        made += 1
    assert made > 150


def test_no_allowed_name_is_one_of_the_verbs() -> None:
    assert not {"bilevel.tune", "bilevel.solve", "bilevel.check"} & allowed()
    refuse_foreign({"_target_": "bilevel.SGD", "step_size": {"_target_": "bilevel.Decay"}}, "x")


def test_trust_has_to_be_names() -> None:
    settings: dict[str, Any] = {"task": {}, "solver": {}, "estimator": {}, "outer": {}}
    for trust in ("os", [3], [""], {"os": 1}):
        with pytest.raises(BadInputError, match="expected a list of modules and files"):
            refuse_untrusted(settings | {"trust": trust, "resume": None}, ["trust=x"])

"""A job composed from another's configuration is what Hydra composes itself."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.cli import sweep_composition
from experiments.cli.hydra_compat import CONF, prepare_process

prepare_process()

JOBS = [
    ["seed=0", "solver.step_size=0.1", "task.table.degree=1"],
    ["seed=1", "solver.step_size=1e-3", "task.table.degree=2"],
    ["seed=1", "solver.step_size=null", "task.table.degree=1"],
    ["seed=2", "solver=gradient_descent", "solver.step_size=0.1"],
    ["seed=3", "solver=gradient_descent", "solver.step_size=0.2"],
    ["seed=4", "solver=momentum", "solver.step_size=0.2"],
    ["seed=5", "+task.more=1"],
    ["seed=6", "+task.more=2"],
    ["seed=7", "~adaptive", "hydra.job.num=3"],
    ["seed=8", "~adaptive", "hydra.job.num=4"],
    ["seed=9", "task.start={a:1}"],
    ["seed=10", "task.start=[1,2]"],
    ["steps=5", "every=${steps}"],
    ["steps=7", "every=${steps}"],
    ["experiment=ridge_quick", "steps=7"],
    ["experiment=ridge_quick", "steps=8", "plot=false"],
    ["experiment=ridge_quick", "steps=9", "plot=true"],
]


def loader(*folders: Path) -> ConfigLoaderImpl:
    path = create_config_search_path(str(CONF))
    for folder in folders:
        path.prepend("own", f"file://{folder}")
    return ConfigLoaderImpl(path)


def text_of(config: Any) -> str:
    """All of it, with the references as they are."""
    return OmegaConf.to_yaml(config)


def test_every_job_is_what_hydra_composes() -> None:
    whole = sweep_composition._WHOLE
    with_folder = ["hydra.sweep.dir=somewhere"]
    own = loader()
    master = own.load_configuration("config", with_folder, RunMode.MULTIRUN)
    found = [own.load_sweep_config(master, job) for job in JOBS]
    for job, config in zip(JOBS, found, strict=True):
        known: Any = whole(loader(), master, job)
        assert text_of(config) == text_of(known), job
        assert OmegaConf.is_struct(config)
        assert config.seed == known.seed
        assert OmegaConf.to_container(config.solver) == OmegaConf.to_container(known.solver)


def test_jobs_of_a_kind_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def count(self: Any, **how: Any) -> Any:
        made.append(how["overrides"])
        return whole(self, **how)

    own = loader()
    master = own.load_configuration("config", ["hydra.job.name=counted"], RunMode.MULTIRUN)
    whole = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    for seed in range(5):
        own.load_sweep_config(master, [f"seed={seed}", f"solver={('sgd', 'adam')[seed % 2]}"])
    assert len(made) == 2


def test_a_leaf_that_changed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    leaf = tmp_path / "task" / "mine.yaml"
    leaf.write_text("_target_: tasks.ridge.ridge\nstart: 1.0\n")
    own = loader(tmp_path)
    master = own.load_configuration("config", ["task=mine"], RunMode.MULTIRUN)
    assert own.load_sweep_config(master, ["task=mine", "seed=1"]).task.start == 1.0
    leaf.write_text("_target_: tasks.ridge.ridge\nstart: 22.0\n")
    assert own.load_sweep_config(master, ["task=mine", "seed=2"]).task.start == 22.0


def test_what_does_not_exist_is_refused_as_hydra_does() -> None:
    own = loader()
    master = own.load_configuration("config", [], RunMode.MULTIRUN)
    for job in (["nothing=1"], ["nothing=2"], ["solver=nothing"]):
        with pytest.raises(Exception, match="nothing"):
            own.load_sweep_config(master, job)


def test_a_copy_is_nobody_elses() -> None:
    own = loader()
    master = own.load_configuration("config", ["hydra.job.name=copied"], RunMode.MULTIRUN)
    first = own.load_sweep_config(master, ["seed=1"])
    first.steps = 12345
    second = own.load_sweep_config(master, ["seed=2"])
    second.steps = 54321
    assert own.load_sweep_config(master, ["seed=3"]).steps == 100

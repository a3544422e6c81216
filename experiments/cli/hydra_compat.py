"""Hydra behind one door: its entry point and its configurations."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from experiments.cli import listing
from experiments.cli.explanations import explain
from experiments.cli.sweep_composition import compose_once
from experiments.cli.sweep_validation import checked_once
from experiments.cli.trust import leaves_guarded
from experiments.common.errors import BadInputError
from experiments.common.files import write_whole

CONF = Path(__file__).resolve().parents[2] / "conf"
_VERSION = "1.3"
_LONGEST_NAME = 150  # file systems allow 255 bytes


def prepare_process() -> None:
    """What a process needs that makes runs: resolvers, and jobs of a kind composed once."""
    register_resolvers()
    compose_once()


def register_resolvers() -> None:
    """`${half:N}`, `${if_run:FOLDER,THEN,OTHERWISE}`, `${folder_name:TEXT}` and `${nouns:}`."""

    def half(number: Any) -> Any:
        """What is no integer is passed on, to be refused where it was given."""
        return number // 2 if isinstance(number, int) else number

    def if_run(folder: Any, then: Any, otherwise: Any) -> Any:
        """A run that goes on writes where it wrote before."""
        return then if folder and (Path(str(folder)) / ".hydra").is_dir() else otherwise

    def nouns() -> str:
        """What `--help` lists; it fills in names after a dollar sign."""
        return listing.listing(listing.sources(sys.argv[1:])).replace("$", "$$")

    for function in (half, if_run, folder_name, nouns):
        OmegaConf.register_new_resolver(function.__name__, function, replace=True)


def folder_name(text: Any) -> str:
    """One folder per text: short, and without what the shell or Hydra would want quoted."""
    readable = str(text).replace("=", "-").replace(",", "_") or "defaults"
    name = re.sub(r"[^\w.+-]", "_", readable, flags=re.ASCII)
    if name == readable and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(readable.encode()).hexdigest()[:12]}"


def compose(overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """The configuration that a command line gives, for tests and notebooks."""
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base=_VERSION):
        return hydra.compose("config", overrides, return_hydra_config=with_hydra)


def launch(task: Callable[[DictConfig], Any]) -> None:
    """Run `task` on the configuration(s) of the command line; raises where Hydra would exit.

    Raises
    ------
    BadInputError : what the command line asks for does not exist.
    """
    register_resolvers()
    if any(argument.startswith("--experimental-rerun") for argument in sys.argv):
        raise BadInputError("--experimental-rerun reads a pickle, which is code: resume=FOLDER")
    entry = hydra.main(config_path=str(CONF), config_name="config", version_base=_VERSION)(task)
    try:
        with _raising(), checked_once(), leaves_guarded(CONF):
            entry()
    except (YAMLError, HydraException, OmegaConfBaseException, ValueError) as error:
        raise BadInputError(explain(error)) from error
    except SystemExit as stop:
        # The argument parser exits with 2, which is the status of a run that diverged.
        if stop.code:
            raise BadInputError("see python -m experiments.run --help") from stop


@contextmanager
def _raising() -> Iterator[None]:
    """Let Hydra raise what it would otherwise print: the exit status depends on what it is."""
    before, returned = os.environ.get("HYDRA_FULL_ERROR"), JobReturn.return_value
    os.environ["HYDRA_FULL_ERROR"] = "1"
    setter: Any = returned
    JobReturn.return_value = property(  # pyright: ignore[reportAttributeAccessIssue]
        _value_of, setter.fset
    )
    try:
        yield
    finally:
        JobReturn.return_value = returned  # pyright: ignore[reportAttributeAccessIssue]
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _value_of(job: Any) -> Any:
    """What a job returned, or raised; Hydra's own property also writes a line of overrides."""
    if job.status == JobStatus.COMPLETED:
        return job._return_value
    raise job._return_value


@dataclass(frozen=True)
class Launch:
    """What Hydra knows about the job: where it writes, and what was asked for.

    Parameters
    ----------
    folder : the run directory.
    overrides : what the command line changed, as it was written.
    choices : config group -> leaf.
    sources : the folders that leaves come from, in the order of precedence.
    sweep : whether the job is one of many.
    unnamed : settings that the name of a run's folder leaves out.
    launcher : its settings that say how jobs share a machine, where it has them.
    """

    folder: Path
    overrides: list[str]
    choices: dict[str, str]
    sources: list[Path]
    sweep: bool
    unnamed: list[str]
    launcher: dict[str, Any]

    @classmethod
    def current(cls) -> "Launch":
        """Of the job that is running."""
        config = HydraConfig.get()
        chosen = {str(group): name for group, name in config.runtime.choices.items()}
        return cls(
            folder=Path(config.runtime.output_dir),
            overrides=[str(override) for override in config.overrides.task],
            choices={g: n for g, n in chosen.items() if n and not g.startswith("hydra/")},
            sources=[Path(s.path) for s in config.runtime.config_sources if s.schema == "file"],
            sweep=config.mode == RunMode.MULTIRUN,
            unnamed=list(config.job.config.override_dirname.exclude_keys),
            launcher={name: config.launcher.get(name) for name in ("n_jobs", "cpus_per_task")},
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as Hydra reads it (1e-3 is a number); interpolations stay as they are."""
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: expected names and values, got a list.")
    return {str(key): value for key, value in content.items()}


def write_yaml(path: Path, config: DictConfig) -> None:
    """The configuration as Hydra saves it, references and all."""
    text = OmegaConf.to_yaml(config)
    write_whole(path, lambda file: file.write(text.encode()))


def read_run(path: Path) -> dict[str, Any]:
    """The resolved settings that a run saved at `path`."""
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    return plain(saved)


def changed(config: DictConfig, values: dict[str, Any]) -> DictConfig:
    """A copy with other values, by full names; what refers to them follows.

    Raises
    ------
    BadInputError : there is no such setting.
    """
    copy = config.copy()
    for name, value in values.items():
        try:
            OmegaConf.update(copy, name, value, merge=False, force_add=False)
        except OmegaConfBaseException as error:
            raise BadInputError(f"vmap.{name}: there is no setting {name}.") from error
    return copy


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as dictionaries and lists, every reference replaced by its value.

    Raises
    ------
    BadInputError : a value that has to be given is missing, or refers to what does not exist.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise BadInputError(
            f"{error.full_key}: has no default and must be given: {error.full_key}=VALUE (Missing "
            "mandatory value)."
        ) from error
    except OmegaConfBaseException as error:
        raise BadInputError(f"{error.full_key}: {error.msg or error}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}

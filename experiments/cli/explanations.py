"""What Hydra, OmegaConf and the YAML parser say of a configuration, in a sentence."""

import sys
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from yaml import YAMLError

from experiments.cli import listing
from experiments.common.errors import suggest


def explain(error: Exception) -> str:
    """A sentence for a name that does not exist, with those that do; otherwise Hydra's text."""
    if isinstance(error, YAMLError):
        return _explain_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        return f"{_find_undecodable()}: this is no UTF-8: {error}."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or [path.stem for path in (listing.CONF / group).glob("*.yaml")]
        if group:
            near = suggest(name, options) or f"--list {group} names all {len(options)}."
            return f"{group}={name}: there is no such {group}. {near}"
    cause: Any = error.__cause__
    parent = getattr(cause, "parent_node", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(parent, DictConfig):
        where = parent._get_full_key(None)
        names = [str(key) for key in parent if key not in ("hydra", "_target_")]
        full = f"{where}.{cause.key}" if where else str(cause.key)
        for name in names:  # `task.degree` of the release before is `task.table.degree`
            if isinstance(node := parent._get_node(name), DictConfig) and cause.key in node:
                return f"{full}: there is no such setting. It is {where}.{name}.{cause.key}."
        return f"{full}: there is no such setting. {suggest(str(cause.key), names)}"
    return "\n".join(str(part) for part in (error, cause) if part is not None)


def _explain_yaml(error: YAMLError) -> str:
    """File, line and problem, without the parser's context."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"{mark.name}, line {mark.line + 1}" if mark else "a leaf"
    return f"{place}: this is no plain YAML: {problem or error}."


def _find_undecodable() -> str:
    """Return the leaf that is no text; the decoder's error does not name it."""
    for path in (path for source in listing.sources(sys.argv[1:]) for path in source.rglob("*.y*")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return str(path)
    return "a leaf"

"""The wheel holds the library only, and what it needs is said in ranges and versions."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from setuptools import find_packages

ABSENT = ["flax", "hydra", "omegaconf", "sklearn", "pandas", "matplotlib", "jaxtyping", "beartype"]
ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]


def addresses(lines: list[str]) -> list[str]:
    """Return the lines that say where a package comes from, which another machine cannot follow."""
    return [line for line in lines if any(mark in line for mark in ("://", "file:", " @ "))]


def test_constraints_hold_versions_only() -> None:
    assert addresses(CONSTRAINTS) == []
    pinned = [Requirement(line) for line in CONSTRAINTS]
    assert all(str(requirement.specifier).startswith("==") for requirement in pinned)


@pytest.mark.parametrize("line", ["a @ b", "-f https://x", "a==1 --find-links file:y"])
def test_addresses_are_found(line: str) -> None:
    assert addresses(["jax==0.10.2", line]) == [line]


@pytest.mark.parametrize("python", ["3.11.2", "3.12.0", "3.13.0"])
@pytest.mark.parametrize("requirement", RUNTIME, ids=lambda requirement: requirement.name)
def test_constraints_pin_each_runtime_package_once(requirement: Requirement, python: str) -> None:
    environment = {"python_full_version": python, "python_version": python[:4]}
    pins = [
        pin
        for pin in map(Requirement, CONSTRAINTS)
        if pin.name == requirement.name and (not pin.marker or pin.marker.evaluate(environment))
    ]
    assert len(pins) == 1
    (version,) = [specifier.version for specifier in pins[0].specifier]
    assert version in requirement.specifier


@pytest.mark.parametrize("requirement", RUNTIME, ids=lambda requirement: requirement.name)
def test_runtime_packages_are_bounded(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators == {">=", "<"}


def test_the_library_needs_three_packages() -> None:
    assert {requirement.name for requirement in RUNTIME} == {"jax", "optax", "numpy"}


def test_the_library_runs_without_what_its_extras_bring() -> None:
    program = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
import bilevel as bl, jax, jax.numpy as jnp
problem = bl.Problem(lambda w, h, x: jnp.mean((x - w) ** 2) / 2, lambda w, h, x: h * w)
data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
one = jnp.array(1.0)
estimate, _ = bl.hypergradient(problem, bl.Auto(), one, one, data, jax.random.key(0))
assert abs(estimate.grad - 2) < 1e-5
try:
    import bilevel.sklearn
except ImportError as error:
    assert "bilevel[sklearn]" in str(error), error
else:
    raise AssertionError
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)


def test_wheel_holds_the_library_only() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}
    packages = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "bilevel").rglob("*.py")}
    assert set(packages) == {".".join(folder.parts) for folder in folders}


def test_the_module_says_its_version_and_where_the_command_line_is() -> None:
    command = [sys.executable, "-m", "bilevel"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    said = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    assert said.startswith("bilevel ")
    assert "python -m experiments.run" in said


def test_citation_and_changelog_name_the_version_and_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version, released = PYPROJECT["project"]["version"], citation["date-released"]
    assert citation["version"] == version
    assert f"## [{version}] - {released}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["license"] == PYPROJECT["project"]["license"]
    addresses = [paper["url"].rpartition("/")[2] for paper in citation["references"]]
    assert addresses == ["2405.15894", "2012.03636", "2405.18373"]


def test_the_workflow_runs_every_python_that_is_promised() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    matrix = yaml.safe_load(text)["jobs"]["ci"]["strategy"]["matrix"]
    classifiers = PYPROJECT["project"]["classifiers"]
    assert matrix["python"] == [c.split()[-1] for c in classifiers if ":: 3." in c]

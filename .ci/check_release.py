"""What must hold of a release: its files, their metadata, and an installation from nothing."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = "".join(re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
PRINTED = "".join(re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
IN_SDIST = ("README.md", "LICENSE", "pyproject.toml", "bilevel/__init__.py", "bilevel/py.typed")


def run(*command: object, **more: str) -> str:
    """Run a command away from the checkout and return what it printed."""
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    env |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [str(part) for part in command],
        env=env,
        text=True,
        capture_output=True,
        check=False,
        **more,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:6]))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_files(wheel: Path, sdist: Path) -> str:
    """Look at names and metadata; return the version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(archive.read(name).decode())
    for field, expected in {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "License-Expression": project["license"],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }.items():
        assert metadata[field] == expected, f"{field} is {metadata[field]!r}, not {expected!r}"
    assert len(project["description"]) <= 512, "PyPI takes a summary of 512 characters"
    assert metadata.get_payload().strip() == README.strip(), "the description is not the README"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation, "CITATION.cff has another version"
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert set(IN_SDIST) <= inside, f"{sdist.name} lacks {set(IN_SDIST) - inside}"
    return project["version"]


def check_installed(wheel: Path, folder: Path, version: str) -> None:
    """Install in an empty environment: the library alone, then with scikit-learn."""
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "--quiet", "--python", sys.executable, folder / "env", cwd=folder)
    (python,) = [*folder.glob("env/bin/python"), *folder.glob("env/Scripts/python.exe")]
    install = [*uv, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt"]
    run(*install, wheel, cwd=folder)
    said = run(python, "-I", "-m", "bilevel", cwd=folder)
    assert said.startswith(f"bilevel {version}\n"), said
    run(*install, f"bilevel[sklearn] @ {wheel.as_uri()}", cwd=folder)
    run(*uv, "pip", "check", "--python", python, cwd=folder)
    printed = run(python, "-I", "-c", EXAMPLE, cwd=folder)
    assert printed == PRINTED, f"the example of the README printed\n{printed}"


def main() -> None:
    """Build, look, install, run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        run(sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        (sdist,) = folder.glob("*.tar.gz")
        version = check_files(wheel, sdist)
        twine = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "twine>=6"]
        run(*twine, "check", "--strict", wheel, sdist, cwd=folder)
        check_installed(wheel, folder, version)
    sys.stdout.write(f"{wheel.name} and {sdist.name} are fit for release\n")


if __name__ == "__main__":
    main()

"""Build the wheel as an installer would, and import it with the checkout off the path."""

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Run with -S, which reads no .pth file: through one the editable install adds the checkout.
IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
unpacked, *site = sys.argv[1:]
sys.path[:0] = [unpacked, *site]
import bilevel
assert bilevel.__file__.startswith(unpacked), bilevel.__file__
modules = [m.name for m in pkgutil.walk_packages(bilevel.__path__, "bilevel.")]
for name in modules:
    importlib.import_module(name)
for name in ("tasks", "experiments", "conf"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported beside the wheel"
print(f"imported bilevel and {len(modules)} modules from the wheel")
"""


def build(folder: Path) -> Path:
    """Build sdist and, from it, the wheel: a stale build/ in the checkout cannot leak in."""
    command = [sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def foreign(names: list[str]) -> list[str]:
    """Return the members that are neither the library nor the wheel's own metadata."""
    tops = {name: name.split("/")[0] for name in names}
    return [n for n, top in tops.items() if top != "bilevel" and not top.endswith(".dist-info")]


def main() -> None:
    """Build, look inside, import."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        wheel = build(folder)
        unpacked = folder / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(unpacked)
        if extra := foreign(names):
            sys.exit(f"{wheel.name} holds more than the library: {extra}")
        if not any(name.endswith("/licenses/LICENSE") for name in names):
            sys.exit(f"{wheel.name} holds no licence")
        paths = sysconfig.get_paths()
        site = sorted({paths["purelib"], paths["platlib"]})
        command = [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(unpacked), *site]
        subprocess.run(command, check=True, cwd=folder)
        print(f"{wheel.name}: {len(names)} members, all of them the library's")


if __name__ == "__main__":
    main()

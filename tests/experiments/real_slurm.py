"""A Slurm of one node from Debian's packages, unpacked into a folder and not installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("slurmd", "slurmctld", "slurm-client", "slurm-wlm-basic-plugins", "libhwloc15")
PACKAGES += ("libmunge2",)


def unpack(folder: Path) -> Path | None:
    """The packages' files below `folder`; `None` where there is no Debian or no network."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return None
    folder.mkdir(parents=True)
    done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, capture_output=True)
    if done.returncode:
        return None
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
    return folder / "root"


@contextmanager
def running(root: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Controller and node; yields the environment in which its commands find them."""
    plugins = next(root.rglob("select_cons_tres.so")).parent
    host = socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    ports = [_free_port(), _free_port()]
    (folder / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmUser={_user()}
SlurmdUser={_user()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SwitchType=switch/none
MpiDefault=none
PluginDir={plugins}
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=dev Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )
    libraries = os.pathsep.join([str(plugins), str(plugins.parent)])
    commands = os.pathsep.join([str(root / "usr/bin"), os.environ["PATH"]])
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": commands,
        "LD_LIBRARY_PATH": libraries,
    }
    sbin = root / "usr/sbin"
    step = _named(sbin, "slurmstepd")
    lines = [
        [str(_named(sbin, "slurmctld")), "-i", "-D"],
        [str(_named(sbin, "slurmd")), "-D", "-f", str(folder / "slurm.conf"), "-d", str(step)],
    ]
    started = []
    try:
        for line in lines:
            with (folder / f"{Path(line[0]).name}.log").open("wb") as log:
                started.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        _wait(environment, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def _wait(environment: dict[str, str], folder: Path) -> None:
    """Until the node is idle."""
    deadline = time.monotonic() + 90
    line = ["sinfo", "--noheader", "--format=%T"]
    while time.monotonic() < deadline:
        found = subprocess.run(line, env=environment, capture_output=True, text=True)
        if found.stdout.strip().startswith("idle"):
            return
        time.sleep(1)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    raise TimeoutError(f"Slurm did not start: {found.stdout} {found.stderr}\n{logs}")


def _named(folder: Path, name: str) -> Path:
    """Debian adds `-wlm` to some names."""
    return next(path for path in (folder / f"{name}-wlm", folder / name) if path.is_file())


def _user() -> str:
    import getpass

    return getpass.getuser()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

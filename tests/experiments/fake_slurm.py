"""`sbatch`, `srun`, `sacct`, `scancel` and `scontrol` in one script, as far as submitit needs them.

Jobs of an array run at once, in the background; their states are files beside the script.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(folder: Path) -> None:
    """Put the commands into `folder`."""
    folder.mkdir(parents=True)
    script = f"#!{sys.executable}\n{Path(__file__).read_text()}"
    for name in NAMES:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def sbatch(script: str) -> None:
    """Start every task of the array, each in a process of its own, on a copy of the script."""
    lines = Path(script).read_text().splitlines()
    copy = HERE / "submitted.sh"
    copy.write_text("\n".join(lines))
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in lines
        if line.startswith("#SBATCH --") and "=" in line
    )
    first, _, last = options.get("array", "").split("%")[0].partition("-")
    for task in map(str, range(int(first), int(last or first) + 1)) if first else [""]:
        name = f"77_{task}" if task else "77"
        array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": task} if task else {}
        environment = (
            os.environ
            | array
            | {
                "SLURM_JOB_ID": "77",
                "SLURM_NTASKS": "1",
                "SLURM_JOB_NUM_NODES": "1",
                "SLURM_NODEID": "0",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_JOB_NODELIST": "fake",
                "SLURM_CPUS_PER_TASK": options.get("cpus-per-task", "1"),
            }
        )
        state = HERE / name
        state.write_text("RUNNING")
        line = f"bash {copy} > {state}.log 2>&1; echo COMPLETED > {state}"
        # Its streams are its own: submitit waits until everybody has closed those of sbatch.
        apart = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(["bash", "-c", line], env=environment, **apart)
    print("Submitted batch job 77")


def srun(*arguments: str) -> None:
    """Run what follows the options."""
    start = next(i for i, a in enumerate(arguments) if a.endswith("python") or "/python" in a)
    os.execv(arguments[start], arguments[start:])


def sacct(*_: str) -> None:
    """The states of all jobs."""
    print("JobID|State|NodeList")
    for path in HERE.glob("77*[0-9]"):
        print(f"{path.name}|{path.read_text().strip()}|fake")


if __name__ == "__main__":
    if command := {"sbatch": sbatch, "srun": srun, "sacct": sacct}.get(Path(sys.argv[0]).name):
        command(*sys.argv[1:])

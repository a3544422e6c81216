"""What many seeds cost: one run after the other, worker processes, and one compiled program.

    python -m benchmarks.sweeps --seeds 32 [--launcher joblib] [--steps 20]
    python -m benchmarks.sweeps --seeds 200 --steps 10 --launcher joblib --only joblib,hand-written

Each way is a fresh process with an empty cache of compiled programs, so that all pay for
compilation; `warm` finds what `alone` has compiled, and `warm-script` what `script` has, one run of
the script by hand. Wall-clock and processor seconds are
compared, start-up included; the latter say more on a machine that is shared. `alone` is one run in
a process of its own, `hand-written` a script for joblib of a few lines around `bilevel.tune`, with
the same settings, that checks and writes nothing. Overhead is what there is beside the compiled
loop: start-up, tracing and compilation, composing, writing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.common.errors import BadInputError

ROOT = Path(__file__).resolve().parents[1]
FIXED = [
    "task.table.degree=1",
    "estimator.steps=100",
    "plot=false",
    "baselines=false",
    "progress=off",
    "max_error=null",  # few steps for some of the seeds: not what is timed
]

HAND_WRITTEN = """
import sys
import joblib

def one(seed, steps):
    import jax, bilevel as bl
    from tasks.ridge import ridge
    task = ridge({"degree": 1, "seed": seed})
    solver = bl.SGD(step_size=bl.Relative(), batch_size=32, sampling="epoch")
    result = bl.tune(
        task.problem, bl.Forward(solver, steps=100, average=50), bl.outer.Auto(),
        task.hyper, task.params, task.data, steps=steps,
        key=jax.random.fold_in(jax.random.key(seed), 2),
    )
    return float(result.history["best"][-1]), task.metrics(result.hyper, result.params)

seeds, steps, jobs = map(int, sys.argv[1:])
print(len(joblib.Parallel(n_jobs=jobs)(joblib.delayed(one)(seed, steps) for seed in range(seeds))))
"""


CACHED = """
import jax
jax.config.update("jax_compilation_cache_dir", {!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
"""


def ways(
    task: str, seeds: int, steps: int, launcher: str | None, folder: Path
) -> dict[str, list[str]]:
    """Name -> command line."""
    command = [sys.executable, "-m", "experiments.run", f"task={task}", *FIXED, f"steps={steps}"]
    many = f"seed=range({seeds})"
    runs = {name: str(folder / name / "runs") for name in ("alone", "warm", "vmap", "basic")}

    def cached(name: str) -> list[str]:
        return [*command, f"compile_cache={folder / name / 'cache'}"]

    found = {
        "alone": [*cached("alone"), f"hydra.run.dir={runs['alone']}"],
        "warm": [*cached("alone"), f"hydra.run.dir={runs['warm']}"],
        "vmap": [*cached("vmap"), f"vmap.seeds={seeds}", f"hydra.run.dir={runs['vmap']}"],
        "basic": [*cached("basic"), many, f"hydra.sweep.dir={runs['basic']}", "-m"],
    }
    script = CACHED.format(str(folder / "script")) + HAND_WRITTEN
    for name in ("script", "warm-script"):
        found[name] = [sys.executable, "-c", script, "1", str(steps), "1"]
    if launcher:
        place = f"hydra.sweep.dir={folder / launcher / 'runs'}"
        found[launcher] = [*cached(launcher), many, f"hydra/launcher={launcher}", place, "-m"]
        jobs = str(os.cpu_count() or 1)
        found["hand-written"] = [sys.executable, "-c", HAND_WRITTEN, str(seeds), str(steps), jobs]
    return found


def _processor() -> float:
    """Seconds that processes started here, and those that they started, have used."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Time every way, once, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--task", default="ridge", help="of ours; the script's is ridge")
    parser.add_argument("--only", help="of these ways, separated by commas: alone, basic, …")
    parser.add_argument("--launcher", help="joblib: workers, and the script beside them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        known = ways(given.task, given.seeds, given.steps, given.launcher, folder)
        chosen = given.only.split(",") if given.only else list(known)
        if unknown := set(chosen) - set(known):
            parser.error(
                f"--only: there is no way {', '.join(unknown)}; there are: {', '.join(known)}"
            )
        for name, line in ((name, known[name]) for name in chosen):
            begun, used = time.perf_counter(), _processor()
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
            seconds, used = time.perf_counter() - begun, _processor() - used
            if done.returncode:
                raise BadInputError(f"{name}: {done.stderr[-1000:]}")
            runs = [json.loads(p.read_text()) for p in (folder / name).rglob("result.json")]
            inside = sum(run["seconds"] for run in runs), sum(r["compile_seconds"] for r in runs)
            count = len(runs) or (given.seeds if name == "hand-written" else 1)
            text = (
                f"{name:13} {count:4} runs: {seconds:.1f} s, {60 * count / seconds:.0f} a minute; "
            )
            text += f"processor {used:.1f} s, {used / count:.2f} s a run"
            if runs:
                overhead = (used - inside[0]) / count
                text += f", of it overhead {overhead:.2f} s; all loops {inside[0]:.1f} s, "
                text += f"compiling them {inside[1]:.1f} s"
            print(text, flush=True)


if __name__ == "__main__":
    main()

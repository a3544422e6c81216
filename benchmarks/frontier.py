"""Error against time: CPU seconds to a relative hypergradient error of 1e-1, 1e-3 and 1e-6.

    python -m benchmarks.frontier FOLDER [--cases ridge digits weights many_weights]
        [--torch-python PATH [--hypertorch PATH]] [--plot frontier.png]

Every candidate is run at several budgets in float64 on one thread; its error is measured against
the implicit hypergradient of the fully solved problem, its time is the best warm call from a cold
start. Points are kept in FOLDER as they come, and those found there are not measured again.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from benchmarks.problems import CASES, Case
from benchmarks.timing import cpu_clock, single_thread

TARGETS = (1e-1, 1e-3, 1e-6)
PEERS = ("JAXopt", "hand-written", "TorchOpt", "higher", "hypertorch")


@dataclass(frozen=True)
class Point:
    """One budget of one candidate."""

    family: str
    budget: str
    error: float
    seconds: float
    first: float


def error_of(case: Case) -> Callable[[Any], float]:
    """The relative error of a gradient, against the implicit one of the fully solved problem."""
    exact = bl.Implicit(bl.Newton(bl.CG(tol=1e-13)), 30, bl.CG(tol=1e-13))
    arguments = (case.hyper, case.params, case.data, jax.random.key(0))
    truth, _ = bl.hypergradient(case.problem, exact, *arguments)
    reference = np.asarray(ravel_pytree(truth.grad)[0])

    def error(gradient: Any) -> float:
        difference = np.asarray(ravel_pytree(gradient)[0]) - reference
        return float(np.linalg.norm(difference) / np.linalg.norm(reference))

    return error


def in_process(case: Case, args: argparse.Namespace, done: list[Point]) -> Iterator[Point]:
    """Ours, JAXopt and hand-written JAX, those that are not done."""
    from benchmarks.candidates import ours, peers

    error, found = error_of(case), {(p.family, p.budget) for p in done}
    for family, budget, call in (*ours(case), *peers(case)):
        if (family, budget) not in found and not family.startswith(tuple(args.leave_out)):
            first = cpu_clock(call)
            seconds = min(cpu_clock(call) for _ in range(args.repeats))
            yield Point(family, budget, error(call()), seconds, first)


def torch_peers(case: Case, args: argparse.Namespace, done: list[Point]) -> Iterator[Point]:
    """What `torch_peers.py` measures in the interpreter that has them; all or nothing."""
    if done:
        return
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, Any] = {
            f"{name}{i}": leaf
            for name, tree in (
                ("params", case.params),
                ("hyper", case.hyper),
                ("inner", case.data.inner),
                ("outer", case.data.outer),
            )
            for i, leaf in enumerate(jax.tree.leaves(tree))
        }
        settings = dict(name=case.name, step_size=case.step_size, batch=case.batch)
        np.savez(pathlib.Path(folder) / "case.npz", **arrays, **settings, steps=case.steps)
        script = str(pathlib.Path(__file__).with_name("torch_peers.py"))
        command = [args.torch_python, script, folder, "--repeats", str(args.repeats)]
        command += ["--hypertorch", args.hypertorch] if args.hypertorch else []
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        error = error_of(case)
        for line in map(json.loads, out.splitlines()):
            gradient = np.load(pathlib.Path(folder) / f"{line.pop('number')}.npy")
            yield Point(error=error(gradient), **line)


def families(points: list[Point]) -> dict[str, list[Point]]:
    """The points of each family, in order of appearance."""
    names = dict.fromkeys(p.family for p in points)
    return {name: [p for p in points if p.family == name] for name in names}


def table(name: str, points: list[Point]) -> str:
    """Per family: the least milliseconds to each target error, the longest first call."""
    heads = " | ".join(f"ms to {t:.0e}" for t in TARGETS)
    lines = [f"### {name}", "", f"| candidate | {heads} | best error | at ms | first call, s |"]
    lines.append("|---|" + "---:|" * (len(TARGETS) + 3))
    for family, mine in families(points).items():
        cells = []
        for target in TARGETS:
            reached = [p.seconds for p in mine if p.error <= target]
            cells.append(f"{1e3 * min(reached):.0f}" if reached else "-")
        best, first = min(mine, key=lambda p: p.error), max(p.first for p in mine)
        lines.append(
            f"| {family} | {' | '.join(cells)} | {best.error:.1e} | {1e3 * best.seconds:.0f} "
            f"| {first:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[Point]], path: str) -> None:
    """One panel per problem: error against time, one line per candidate."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 9), layout="constrained")
    names = list(dict.fromkeys(p.family for points in results.values() for p in points))
    colours = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(names)}
    for axis, (name, points) in zip(axes.flat, results.items(), strict=False):
        for family, mine in families(points).items():
            mine = sorted(mine, key=lambda p: p.seconds)
            style, marker = ("--", "x") if family.startswith(PEERS) else ("-", "o")
            axis.loglog(
                [p.seconds for p in mine],
                [p.error for p in mine],
                style,
                marker=marker,
                color=colours[family],
                label=family,
                linewidth=3 if family == "Auto" else 1.2,
            )
        for target in TARGETS:
            axis.axhline(target, color="0.85", linewidth=0.8, zorder=0)
        axis.set(title=name, xlabel="CPU seconds", ylabel="relative error of the hypergradient")
        axis.set_ylim(1e-14, 300)
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, fontsize=8, loc="outside right")
    figure.savefig(path, dpi=110)


def kept(file: pathlib.Path, measure: Any, name: str, args: argparse.Namespace) -> list[Point]:
    """The points in the file and those measured now, each written as soon as it is there."""
    points = [Point(**p) for p in json.loads(file.read_text())] if file.exists() else []
    if not args.show:
        for point in measure(CASES[name](), args, points):
            points.append(point)
            file.write_text(json.dumps([asdict(p) for p in points], indent=1))
        jax.clear_caches()
    return points


def main() -> None:
    """Print one table per problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch-python", help="an interpreter that has torch and the peers")
    parser.add_argument("--hypertorch", help="a checkout of hypertorch")
    parser.add_argument("--leave-out", nargs="*", default=[], help="families, by their beginning")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--plot", help="write the picture here")
    args = parser.parse_args()
    single_thread()
    jax.config.update("jax_enable_x64", True)
    args.folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in args.cases:
        results[name] = kept(args.folder / f"{name}.json", in_process, name, args)
        if args.torch_python or args.show:
            results[name] += kept(args.folder / f"{name}_torch.json", torch_peers, name, args)
        print(table(name, results[name]), flush=True)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()

"""Run one solver of a benchmark_bilevel checkout, ours or its own, on a clock that is honest.

python -m benchmarks.benchopt.run CHECKOUT "SABA[step_size=0.1]" --data simulated --seconds 20

One process per solver. Nothing of the checkout is changed: our solver files are found beside this
one, `libsvmdata` and `mnist.pkl` are stood in for by local files (`--files`), dispatch waits for
the result, and the clock counts CPU seconds of this process. Rows of value, seconds, oracle calls
go to `--out`, appended, one JSON object a run.
"""

import argparse
import json
import os
import re
import runpy
import sys
import time
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
OURS = {"bilevel": "bilevel_deterministic", "bilevel_single_loop": "bilevel_single_loop"}


def calls(solver, n, m):
    """Oracle calls per iteration in minibatches: inner and outer gradients, products, crosses."""
    b = solver.batch_size if solver.batch_size != "full" else n
    inner = getattr(solver, "n_inner_steps", 10)
    terms = getattr(solver, "n_shia_steps", 10)
    name = getattr(solver, "method", solver.name).lower()
    full = 3 * n / b + m / b
    return {
        "soba": 4,
        "saba": 4,
        "srba": 8 + full / max(int((n + m) * (getattr(solver, "period_frac", 0) or 0.5) / b), 1),
        "stocbio": inner + terms + 2,
        "amigo": 2 * inner + 2,
        "mrbo": 2 * (terms + 3),
        "f2sa": 3 * inner + 3,
    }[name]


def stand_in(files):
    """`libsvmdata.fetch_libsvm` from ijcnn1.npz, and mnist.pkl from mnist.npz."""
    if files is None:
        return

    def fetch_libsvm(name):
        z = np.load(files / "ijcnn1.npz")
        part = "test" if name.endswith("_test") else "train"
        return z[f"X_{part}"], z[f"y_{part}"].astype("float32")

    module = types.ModuleType("libsvmdata")
    module.fetch_libsvm = fetch_libsvm
    sys.modules["libsvmdata"] = module
    if not Path("mnist.pkl").exists() and (files / "mnist.npz").exists():
        import pickle

        z = np.load(files / "mnist.npz")
        parts = {"training": "train", "test": "test"}
        mnist = {f"{k}_images": z[f"x_{v}"].reshape(-1, 784) for k, v in parts.items()}
        mnist |= {f"{k}_labels": z[f"y_{v}"].copy() for k, v in parts.items()}
        with open("mnist.pkl", "wb") as file:
            pickle.dump(mnist, file)


def value_function(files):
    """``h`` of ijcnn1, float64; the benchmark's own solver stops at 1e-3 in float32."""
    z = np.load(files / "ijcnn1.npz")
    X, y, F, z = (z[key].astype(float) for key in ("X_train", "y_train", "X_test", "y_test"))

    def objective(w, penalty):
        return np.mean(np.logaddexp(0, -y * (X @ w))) + np.sum(penalty * w**2) / 2

    def exact(lam):
        penalty, w = np.exp(np.asarray(lam, float)), np.zeros(len(lam))
        for _ in range(50):
            p = 1 / (1 + np.exp(np.clip(y * (X @ w), -500, 500)))
            gradient = -X.T @ (y * p) / len(y) + penalty * w
            if np.linalg.norm(gradient) < 1e-10:
                break
            hessian = (X.T * (p * (1 - p))) @ X / len(y) + np.diag(penalty)
            step, length = np.linalg.solve(hessian, gradient), 1.0
            while length > 1e-8 and objective(w - length * step, penalty) > objective(w, penalty):
                length /= 2
            w = w - length * step
        return float(np.mean(np.logaddexp(0, -z * (F @ w))))

    return exact


def arguments():
    """What to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("solver", help="name, or name[key=value,...]")
    parser.add_argument("--data", default="simulated", help="dataset, or dataset[key=value,...]")
    parser.add_argument("--files", type=Path, help="folder with ijcnn1.npz and mnist.npz")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--points", type=int, default=60, help="evaluations at most")
    parser.add_argument("--out", type=Path, default=Path("benchopt.jsonl"))
    parser.add_argument("--wall", action="store_true", help="the wall clock instead of CPU seconds")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.files = args.files.resolve() if args.files else None
    return args


def pieces(text):
    """``name[key=value,...]`` as a name and its settings."""
    name, inside = re.fullmatch(r"(\w+)(?:\[(.*)\])?", text).groups()
    settings = dict(pair.split("=") for pair in inside.split(",")) if inside else {}
    return name, {key: _number(value) for key, value in settings.items()}


def _number(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def prepare(checkout, data, files):
    """The benchmark, its objective with the data set in it, and what it hands to solvers."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    files = files.resolve() if files else None
    os.chdir(checkout)
    sys.path[:0] = [str(checkout)]
    stand_in(files)
    import jax
    from benchopt.benchmark import Benchmark

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    benchmark = Benchmark(checkout)
    import benchmark_utils  # of the checkout, as benchopt has found it

    benchmark_utils.__path__.append(str(HERE / "benchmark_utils"))
    name, settings = pieces(data)
    dataset = {d.name: d for d in benchmark.get_datasets()}[name].get_instance(**settings)
    objective = benchmark.get_benchmark_objective().get_instance()
    objective.set_data(**dataset.get_data())
    return benchmark, objective, objective.get_objective()


def ours(name):
    """Our solver class."""
    return runpy.run_path(str(HERE / "solvers" / f"{OURS[name]}.py"))["Solver"]


def theirs(benchmark, name):
    """The benchmark's."""
    return {solver.name: solver for solver in benchmark.get_solvers()}[name]


def main() -> None:
    """Load the checkout, run, write."""
    args = arguments()
    benchmark, objective, given = prepare(args.checkout.resolve(), args.data, args.files)
    name, settings = pieces(args.solver)
    solver = (ours(name) if name in OURS else theirs(benchmark, name)).get_instance(**settings)
    clock = time.perf_counter if args.wall else time.process_time
    begun = clock()
    solver.set_objective(**given)
    exact = value_function(args.files) if pieces(args.data)[0] == "ijcnn1" else None
    row = _follow(solver, objective, clock, args.seconds, args.points, exact)
    n, m = given["n_inner_samples"], given["n_outer_samples"]
    if hasattr(solver, "trail"):
        row["calls"] = solver.trail[: len(row["seconds"])]
    else:
        each = calls(solver, n, m) * solver.eval_freq
        row["calls"] = [each * k for k in range(len(row["seconds"]))]
    row |= {"solver": args.solver, "data": args.data, "clock": "wall" if args.wall else "cpu"}
    row["setup"] = row.pop("began") - begun
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    values = row.get("h", row.get("value"))
    print(args.solver, args.data, f"{row['seconds'][-1]:.1f} s", values[0], "->", values[-1])


def _follow(solver, objective, clock, seconds, points, exact):
    """The benchmark's callback protocol; evaluations are outside the clock.

    What is kept is evaluated after the run, at no more than `--points` points, evenly over it.
    """
    kept, times = [], []
    spent, began = 0.0, clock()
    started = began

    def callback():
        nonlocal spent, started
        spent += clock() - started
        kept.append({k: np.array(v) for k, v in solver.get_result().items()})
        times.append(spent)
        started = clock()
        return spent < seconds

    if not hasattr(solver, "inner_var"):
        start = solver.start if hasattr(solver, "start") else (solver.outer_var0, solver.inner_var0)
        solver.outer_var, solver.inner_var = start
    solver.run(callback)
    every = max(len(kept) // points, 1)
    chosen = sorted({*range(0, len(kept), every), len(kept) - 1})
    row = {"seconds": times, "at": chosen, "began": began}
    if exact is not None:
        return row | {"h": [exact(kept[i]["outer_var"]) for i in chosen]}
    metrics = [objective.evaluate_result(**kept[i]) for i in chosen]
    for key in metrics[0]:
        row[key] = [float(entry[key]) for entry in metrics]
    return row


if __name__ == "__main__":
    main()

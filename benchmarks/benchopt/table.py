"""The rows of `run.py` as a table, and as a figure of value against time and oracle calls.

python -m benchmarks.benchopt.table benchopt.jsonl [--figure docs/img/benchmark.png]
"""

import argparse
import json
from pathlib import Path
from typing import Any

TARGETS = {
    "simulated": [1e-2, 1e-4, 1e-6],
    "ijcnn1": [0.27, 0.22, 0.21],
    "mnist": [0.2, 0.17, 0.15],
}
NAMES = {
    "simulated": "squared norm of the hypergradient",
    "ijcnn1": "value function",
    "mnist": "validation error",
}


def points(row: dict[str, Any]) -> list[tuple[float, float, float]]:
    """``(seconds, calls, value)`` at each evaluation."""
    values = row["h"] if "h" in row else row["value"]
    return [
        (row["seconds"][i], row["calls"][i], value)
        for i, value in zip(row["at"], values, strict=True)
    ]


def reached(row: dict[str, Any], target: float) -> str:
    """Seconds and calls at the first evaluation at or below the target."""
    for seconds, calls, value in points(row):
        if value <= target:
            return f"{seconds:.1f} s, {_short(calls)}"
    return "–"


def _short(calls: float) -> str:
    return f"{calls / 1e6:.2g}M" if calls >= 1e6 else f"{calls / 1e3:.3g}k"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one table per data set."""
    lines = []
    for data, targets in TARGETS.items():
        heads = " | ".join(f"to {target:g}" for target in targets)
        lines += [f"### {data}: {NAMES[data]}", "", f"| solver | {heads} | end |"]
        lines.append("|---|" + "---|" * (len(targets) + 1))
        for row in rows:
            if row["data"].startswith(data):
                seconds, calls, value = points(row)[-1]
                cells = " | ".join(reached(row, target) for target in targets)
                end = f"{value:.3g} ({seconds:.0f} s, {_short(calls)})"
                lines.append(f"| {row['solver']} | {cells} | {end} |")
        lines.append("")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Value against seconds (above) and oracle calls (below)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(12, 6.5), sharey="col")
    for column, data in enumerate(TARGETS):
        for row in rows:
            if not row["data"].startswith(data):
                continue
            name = row["solver"].replace("bilevel_single_loop", "bilevel").split("[")[0]
            if "method" in row["solver"]:
                name = "bilevel, its SABA"
            style = {"lw": 2.5, "color": "k"} if name == "bilevel" else {"lw": 1.2}
            seconds, calls, values = zip(*points(row), strict=True)
            axes[0, column].plot(seconds, values, label=name, **style)
            axes[1, column].plot(calls[1:], values[1:], label=name, **style)  # the axis has no 0
        axes[0, column].set_title(f"{data}: {NAMES[data]}", fontsize=10)
        axes[0, column].set_xlabel("CPU seconds")
        axes[1, column].set_xlabel("oracle calls (minibatches of 64)")
        axes[1, column].set_xscale("log")
        axes[0, column].legend(fontsize=7)
    for line in (0, 1):
        axes[line, 0].set_yscale("log")
    fig.tight_layout()
    fig.savefig(path, dpi=80)


def main() -> None:
    """Print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    print(table(rows))
    if args.figure:
        figure(rows, args.figure)


if __name__ == "__main__":
    main()

"""Pictures and table of docs/scikit-learn-gallery.md, drawn from the code blocks of that page.

    OMP_NUM_THREADS=1 python -m benchmarks.sklearn_gallery [--draws 10] [--folder docs/img]

The blocks run as they stand; the pictures show their variables, the table repeats their functions
for other seeds.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scikit-learn-gallery.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLUE, ORANGE, GREY = "#1f5fa8", "#d9791f", "#9a9a9a"


def columns(axis: Any, values: np.ndarray, useful: int, common: float, name: str) -> None:
    """A value of each column beside the common one of the other tool."""
    at = np.arange(len(values))
    axis.semilogy(at[:useful], values[:useful], "o", color=ORANGE, label="columns that matter")
    axis.semilogy(at[useful:], values[useful:], "o", color=BLUE, ms=4, label="the others")
    axis.axhline(common, color=GREY, ls="--", label=name)
    axis.set_xlabel("column")
    above(axis)


def above(axis: Any) -> None:
    """A legend that hides no point."""
    axis.legend(
        fontsize=8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        frameon=False,
        columnspacing=0.8,
        handletextpad=0.3,
    )


def coefficients(axis: Any, truth: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Of two models, about the true ones."""
    at = np.arange(len(truth))
    axis.step(at, truth, where="mid", color="black", lw=0.8, label="truth")
    for (name, values), colour in zip(found.items(), (GREY, BLUE), strict=True):
        axis.plot(at, np.ravel(values), "o", ms=4, color=colour, label=name)
    axis.set_xlabel("column")
    axis.set_ylabel("coefficient")
    above(axis)


def ridge(page: dict[str, Any], axes: Any) -> None:
    """Penalties and coefficients."""
    one, own, (before, after) = page["one"], page["own"], page["errors"]
    columns(axes[0], own.alpha_, 5, one.alpha_, "RidgeCV")
    axes[0].set_ylabel("penalty")
    found = {
        f"RidgeCV, error {before:.2f}": one.coef_,
        f"per feature, {after:.2f}": own.coef_,
    }
    coefficients(axes[1], page["slopes"], found)


def logistic(page: dict[str, Any], axes: Any) -> None:
    """Penalties and coefficients."""
    one, own, (before, after) = page["plane"], page["planes"], page["losses"]
    columns(axes[0], own.alpha_, 3, 1 / np.ravel(one.C_)[0], "LogisticRegressionCV")
    axes[0].set_ylabel("penalty")
    truth = np.append([2.0, -2.0, 1.5], np.zeros(57))
    found = {
        f"one penalty, log-loss {before:.3f}": one.coef_,
        f"per feature, {after:.3f}": own.coef_,
    }
    coefficients(axes[1], truth, found)


def cleaner(page: dict[str, Any], axes: Any) -> None:
    """Trust in right and wrong labels; the digits trusted least."""
    trust, wrong = page["trust"], page["wrong"]
    bins = np.linspace(0, 1, 21)
    names = ["right labels", "wrong labels"]
    axes[0].hist([trust[~wrong], trust[wrong]], bins, color=[BLUE, ORANGE], label=names)
    axes[0].set_xlabel("trust")
    axes[0].set_ylabel("examples")
    above(axes[0])
    worst = np.argsort(trust, kind="stable")[:18]
    tiles = page["images"][worst].reshape(3, 6, 8, 8)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (3, 1), (1, 1)))  # room for the label above each
    axes[1].imshow(tiles.transpose(0, 2, 1, 3).reshape(36, 60), cmap="gray_r")
    for k, i in enumerate(worst):
        colour = ORANGE if wrong[i] else BLUE
        row, column = divmod(k, 6)
        place = (10 * column + 4.5, 12 * row + 1.2)
        axes[1].text(
            *place, f"“{page['label'][i]}”", color=colour, ha="center", va="center", fontsize=9
        )
    axes[1].axis("off")
    axes[1].set_title("trusted least, with the label given", fontsize=10)


def kernel(page: dict[str, Any], axes: Any) -> None:
    """Widths, and predictions against the truth."""
    columns(axes[0], page["scaled"].gamma_, 5, page["wide"].best_params_["gamma"], "GridSearchCV")
    axes[0].set_ylabel("gamma, inverse square of the width")
    names = ("one width, error", "a width per column")
    for name, guess, error, colour in zip(
        names, page["guesses"], page["squares"], (GREY, BLUE), strict=True
    ):
        label = f"{name}: {error:.2f}"
        axes[1].plot(page["truth"], guess, ".", ms=4, color=colour, label=label)
    ends = [page["truth"].min(), page["truth"].max()]
    axes[1].plot(ends, ends, color="black", lw=0.8)
    axes[1].set_xlabel("test target")
    axes[1].set_ylabel("prediction")
    above(axes[1])


def drawn(draw: Callable, page: dict[str, Any], path: Path) -> None:
    """One picture of two panels."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw(page, axes)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def line(name: str, values: list[float], digits: int = 3) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"| {name} | {np.mean(values):.{digits}f} | {error:.{digits}f} |"


def table(page: dict[str, Any], draws: int) -> None:
    """The functions of the page over seeds."""
    print("| what | mean | standard error |\n|---|---:|---:|")
    peers = {"ridges": "RidgeCV", "logistics": "LogisticRegressionCV", "kernels": "GridSearchCV"}
    for name, peer in peers.items():
        for guard in (True, False):
            errors = [page[name](seed, guard)[2] for seed in range(draws)]
            text = f"{name}, test error as a ratio to {peer}" + ("" if guard else ", no guard")
            print(line(text, [after / before for before, after in errors]), flush=True)
    for steps in (3, 20):
        found = [page["cleaned"](seed, steps)[-2:] for seed in range(draws)]
        for what, part in (("right order", 0), ("accuracy", 1)):
            for name in found[0][part]:
                if steps == 3 or name == "DataCleaner":
                    text = f"digits, {what}: {name}"
                    text += f", {steps} steps" if name == "DataCleaner" else ""
                    print(line(text, [each[part][name] for each in found]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=PAGE.parent / "img")
    args = parser.parse_args()
    matplotlib.use("Agg")
    page: dict[str, Any] = {}
    exec("\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8"))), page)
    for draw in (ridge, logistic, cleaner, kernel):
        drawn(draw, page, args.folder / f"sklearn_{draw.__name__}.png")
    if args.draws:
        table(page, args.draws)


if __name__ == "__main__":
    main()

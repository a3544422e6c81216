# %% [markdown]
# # A sweep of 100 runs and its report
#
# One run is an anecdote. This tutorial makes 100 of them by one command, in one compiled program,
# and reads the report: a table with intervals, a paired comparison, and a page that opens in a
# browser. It runs from a checkout, where the command line is.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bilevel as bl

checkout = Path(bl.__file__).parents[1]
folder = Path(tempfile.mkdtemp())


def call(module, *arguments):
    """Run a command of the checkout and return what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout


# %% [markdown]
# ## The question
#
# The task is ridge regression on diabetes with a penalty for each input, tuned on a hold-out set by
# the outer loop,
#
# $$ \lambda \leftarrow \lambda - \alpha \nabla h(\lambda), $$
#
# for ten steps. Does it matter where the penalties start, at 0.01 or at 1? A seed decides which
# rows are for training, validation and test, so the answer of one seed is the answer of one split.
# We take 50 seeds for each start.
#
# ## The sweep
#
# In a shell this is
#
#     python -m experiments.run vmap.seeds=50 '+vmap.task.start=[0.01,1]' steps=10 ...
#
# `vmap.seeds` and `vmap.NAME=[...]` make a run for every combination, all of them lanes of one
# program: it is compiled once. Every run gets a folder of its own, as if it had been made alone.

# %%
call(
    "experiments.run",
    "vmap.seeds=50",
    "+vmap.task.start=[0.01,1]",
    "estimator=closed_form",
    "task.table.outer=holdout",
    "task.table.degree=1",
    "steps=10",
    "plot=false",
    "baselines=false",
    "progress=off",
    f"hydra.run.dir={folder}",
)
runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
print(len(runs), "runs, the first of them made by:")
print(runs[0]["command"])
assert len(runs) == 100

# %% [markdown]
# Given again, the same command finds everything finished. Stopped in between, it would go on where
# it was stopped.
#
# ## One seed against fifty
#
# Here is what one might have reported after a single run of each, from three different seeds.

# %%
table = pd.DataFrame(
    {
        "start": [run["settings"]["task"]["start"] for run in runs],
        "seed": [run["seed"] for run in runs],
        "test_mse": [run["test_metrics"]["test_mse"] for run in runs],
    }
).pivot(index="seed", columns="start", values="test_mse")
print(table.head(3).round(1))
print(f"\nstandard deviation over 50 seeds {table[1.0].std():.0f}")

# %% [markdown]
# ## The report
#
# `experiments.report` makes a row of each setting: the mean over seeds, half of its 95 % interval,
# and the difference from the best row, paired over common seeds. Pairing takes out what all
# settings have in common, here which rows are hard to predict, and that is most of the spread.

# %%
call("experiments.report", str(folder), "--no-page")
report = pd.read_parquet(folder / "report.parquet")
print(report[["run", "completed", "mean", "95 %", "difference", "d 95 %", "verdict"]].to_string())

# %%
difference = (table[1.0] - table[0.01]).to_numpy()
count = np.arange(2, 51)
half = [1.96 * difference[:n].std(ddof=1) / n**0.5 for n in count]
unpaired = [1.96 * (table[:n].var(ddof=1).sum() / n) ** 0.5 for n in count]
means = np.array([difference[:n].mean() for n in count])
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.hist([table[0.01], table[1.0]], 15, label=["start 0.01", "start 1"])
left.set(xlabel="test mean squared error", ylabel="runs")
left.legend()
right.fill_between(count, means - unpaired, means + unpaired, color="0.85", label="not paired")
right.fill_between(count, means - half, means + half, color="C0", alpha=0.5, label="paired")
right.plot(count, means, "C0")
right.axhline(0, color="k", linewidth=0.8)
right.set(xlabel="seeds", ylabel="difference of the errors, 95 %")
right.legend()
plt.show()

# %% [markdown]
# *Over splits the error spreads far wider than the two starts differ (left); pairing the seeds
# narrows the interval of the difference many times over, and more seeds narrow it as the root of
# their number (right).*

# %% [markdown]
# ## What to do next
#
# * Without `--no-page` the report also writes `report.html`, with the curves of every run.
# * What changes shapes or the program is swept by `-m estimator=forward,implicit`:
#   [sweeps](../sweeps.md) has launchers for worker processes, Slurm and Ray.
# * The best row is chosen on test data: repeat it on other seeds before you report it.

"""The command `python -m experiments.predict RUN_FOLDER new.csv --out predictions.csv`.

What the model that a run has left says of the rows of a table: one line per row, in their order.
Of a regression the column `prediction`; of a classification also `probability of LABEL` for each
label. The table is read as that of the run was; its columns may stand in any order, and those that
the model does not know are ignored.

Exit status: 0, or 1 where there is no model, or the table is not one that it can be asked about.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import BadInputError
from experiments.common.files import write_whole
from experiments.common.pipes import piped
from experiments.storage.result_file import MODEL, RESULT, read_result

if TYPE_CHECKING:
    import pandas as pd


def main(arguments: list[str] | None = None) -> int:
    """Write the predictions; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="where result.json lies")
    parser.add_argument("table", type=Path, help="new rows: .csv, .tsv, .parquet, .xlsx, .npz")
    parser.add_argument("--out", type=Path, required=True, help="the csv file to write")
    given = parser.parse_args(arguments)
    try:
        predictions = predict(given.run, given.table)
        text = predictions.to_csv(index=False)
        write_whole(given.out, lambda file: file.write(text.encode()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(predictions)} rows predicted: {given.out}")
    return 0


def predict(run: Path, table: Path) -> "pd.DataFrame":
    """What the model of the run says of each row of the table.

    Raises
    ------
    BadInputError : the run has no model.
    ValueError : the table cannot be read, or lacks a column.
    """
    import pandas as pd

    from tasks.datasets.frames import read_frame
    from tasks.datasets.sparse import read_rows
    from tasks.models import load_model

    if not (run / MODEL).is_dir():
        raise BadInputError(_no_model(run))
    model: Any = load_model(run / MODEL)
    rows: Any = read_rows(table) if table.suffix == ".npz" else read_frame(table)[0]
    found = pd.DataFrame({"prediction": model.predict(rows)})
    if hasattr(model, "predict_proba"):
        shares = model.predict_proba(rows)
        for label, share in zip(model.classes_, shares.T, strict=True):
            found[f"probability of {label}"] = share
    return found


def _no_model(run: Path) -> str:
    path = run / RESULT
    if not path.is_file():
        return f"{run}: no run has ended in this folder, {path} is missing."
    result = read_result(path)
    if result["status"] not in ("completed", "unreliable"):
        return f"{run}: this run is {result['status']}, and a run leaves its model when it ends."
    return (
        f"{run}: the run of {result['task']} left no model. Runs of ridge, lasso, logistic and "
        "kernel tasks leave one, of tasks on images, of multinomial, and of task=custom on a table."
    )


if __name__ == "__main__":
    sys.exit(piped(main))

"""Data sets from openml.org, through scikit-learn, which keeps what it has fetched."""

from typing import Any

import sklearn.datasets

from tasks.datasets import files

PREFIX = "openml:"
TRIED = (
    "Tried: sklearn.datasets.fetch_openml, which looks into its own folder (scikit_learn_data in "
    "your home) and then asks openml.org. Without a network take a bundled set, an npz set in "
    "root=FOLDER, or the path of a file of your own."
)


def read(name: str, *, numbers: bool = True) -> files.Raw:
    """Read ``openml:NAME``, ``openml:NAME:VERSION`` or ``openml:ID``; or numeric columns only.

    Raises
    ------
    ValueError : it cannot be fetched, has no single target, or no numeric column.
    """
    title, _, version = name.removeprefix(PREFIX).partition(":")
    if not title or (version and not version.isdigit()):
        raise ValueError(
            f"{name!r} is no OpenML data set: write openml:NAME, openml:NAME:VERSION or openml:ID."
        )
    which: dict[str, Any] = {"data_id": int(title)} if title.isdigit() else {"name": title}
    if version:
        which["version"] = int(version)
    try:
        bunch: Any = sklearn.datasets.fetch_openml(**which, as_frame=True, parser="auto")
    except Exception as error:  # of the network, of the server, of the file: all end the same way
        why = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(f"{name!r} could not be fetched ({why}). {TRIED}") from error
    frame, target = bunch.data, bunch.target
    if target is None or target.ndim != 1:
        raise ValueError(
            f"{name!r} names no single target column. Download it, and give the path of the csv "
            "file with target=COLUMN."
        )
    frame, notes = frame.rename(columns=str), ()
    if numbers:
        numeric = [c for c in frame.columns if frame[c].dtype.kind in "biuf"]
        if not numeric:
            raise ValueError(f"{name!r} has no numeric column among its {frame.shape[1]}.")
        if left := frame.shape[1] - len(numeric):
            frame, notes = frame[numeric], (f"{left} categorical columns left out",)
    return files.Raw(
        files.plain(target),
        list(frame.columns),
        name,
        target=str(target.name),
        notes=notes,
        frame=frame,
    )

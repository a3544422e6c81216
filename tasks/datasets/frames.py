"""Tables as they come: text of any delimiter and encoding, compressed or not, parquet, Excel.

Every guess is a remark, to be read beside the result.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.datasets.archives import memory
from tasks.datasets.files import TABLES, TEXTS

_BINARY = (".parquet", ".xlsx", ".xls")
_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_DELIMITERS = ",;\t|"
_SAMPLE = 50  # lines by which a delimiter is chosen
_MARKS = {codecs.BOM_UTF8: "utf-8-sig"}
_MARKS |= dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16")


def read_frame(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns as pandas reads them, their names as texts, and remarks.

    Raises
    ------
    ValueError : it cannot be read, is too large for this machine, or has no header line.
    """
    name = path.name.lower()
    notes: list[str] = []
    try:
        if name.endswith(".parquet"):
            frame = _read_parquet(path)
        elif name.endswith((".xlsx", ".xls")):
            frame = _read_excel(path)
        else:
            text, notes = _decode(_unpack(path))
            frame = _read_text(text, notes)
    except (ValueError, OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
        kind = next(end for end in TABLES if name.endswith(end)).split(".")[1]
        raise ValueError(f"{path} cannot be read as a {kind} table: {error}") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if len(set(frame.columns)) < len(frame.columns):
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{path} has two columns named {twice!r}.")
    return frame, notes


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow.parquet

    about = pyarrow.parquet.ParquetFile(path).metadata
    if (size := about.num_rows * about.num_columns * 8) > memory() // 2:
        raise ValueError(f"its {about.num_rows} rows would take {size / 2**30:.1f} GiB.")
    return pd.read_parquet(path)


def _read_excel(path: Path) -> pd.DataFrame:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > memory() // 8:
            raise ValueError(f"unpacked it has {size / 2**30:.1f} GiB.")
    try:
        return pd.read_excel(path)
    except ImportError as error:
        raise ValueError(
            "pip install -e '.[excel]' for .xlsx (xlrd for .xls), or save the sheet as .csv "
            f"({error})"
        ) from error


def _unpack(path: Path) -> bytes:
    """Return the bytes of a text, of a compressed one too, if they fit the memory."""
    most = memory() // 8  # pandas takes some times the text
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.lower().endswith(TEXTS)]
            if len(members) != 1:
                raise ValueError(f"the archive holds {len(members)} tables: expected one.")
            with archive.open(members[0]) as file:
                content = file.read(most + 1)
    else:
        opened = _OPENERS.get(path.suffix.lower(), lambda path: path.open("rb"))
        with opened(path) as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"unpacked it has more than {most / 2**30:.1f} GiB.")
    return content


def _decode(content: bytes) -> tuple[str, list[str]]:
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding), []
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError:
        return content.decode("latin-1"), ["the text is no UTF-8, and was read as Latin-1"]


def _read_text(text: str, notes: list[str]) -> pd.DataFrame:
    delimiter = _find_delimiter(text)
    if delimiter != ",":
        notes.append(f"columns are separated by {'tabs' if delimiter == chr(9) else delimiter!r}")
    frame = pd.read_csv(io.StringIO(text), sep=delimiter, skipinitialspace=True)
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        raise ValueError("its lines have more fields than the header line.")
    return frame


def _find_delimiter(text: str) -> str:
    """Return the delimiter by which the first lines have the most columns, as many in each."""
    lines = [line for line in text.splitlines()[:_SAMPLE] if line.strip()]

    def columns(delimiter: str) -> int:
        counts = {len(row) for row in csv.reader(lines, delimiter=delimiter)}
        return counts.pop() if len(counts) == 1 else 0

    best = max(_DELIMITERS, key=columns)
    return best if columns(best) > 1 else ","


def numbered_rows(path: Path) -> Callable[[int], str]:
    """Return what a row is called: a text counts its lines from 1, and the header is one."""
    text = not path.name.lower().endswith(_BINARY)
    return (lambda i: f"line {i + 2}") if text else "row {}".format


def choose_columns(
    frame: Any, target: str, drop: Any, columns: Any, source: str
) -> tuple[pd.DataFrame, list[str]]:
    """Return the feature columns: those asked for, without those dropped and row numbers.

    Raises
    ------
    ValueError : a name that is no column, or none is left.
    """
    asked = [str(name) for name in columns or ()]
    dropped = [str(name) for name in drop or ()]
    for name in (*asked, *dropped):
        if name not in frame.columns:
            raise ValueError(
                f"{source} has no column {name!r}; its columns are {', '.join(frame.columns)}."
            )
    notes = [f"column {name!r} left out, as asked" for name in dropped]
    kept = [name for name in asked or frame.columns if name not in {*dropped, target}]
    if not asked:
        for name in kept[:1]:
            if _numbers_rows(name, frame[name]) and len(kept) > 1:
                kept = kept[1:]
                notes.append(f"column {name!r} left out: it numbers the rows")
    if not kept:
        raise ValueError(f"{source}: no column of features is left beside {target!r}.")
    return frame[kept], notes


_INDEX_NAMES = {"", "id", "index", "row", "rownames", "row_id", "rowid", "row_names", "no", "nr"}


def _numbers_rows(name: str, column: pd.Series) -> bool:
    named = name.lower() in _INDEX_NAMES or name.startswith("Unnamed: ")
    if not named or column.dtype.kind not in "iu":
        return False
    first = int(column.iloc[0])
    return first in (0, 1) and bool((column.to_numpy() == range(first, first + len(column))).all())

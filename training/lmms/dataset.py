"""The pictures of a task, from its data as `datasets` keeps them: a saved folder or Parquet.

Row i of a split is document i of lmms-eval, unless the task leaves documents out; whoever asks says
which picture it must be, and gets that one or none. Knows Arrow and folders; knows nothing of runs
or models, and does not import `datasets`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m3model.errors import BadPicture
from m3model.pictures import CHECKED_BEFORE, decode_picture, decoded_elsewhere
from router.records import picture_id
from training.errors import BadRecord, TrainingError

if TYPE_CHECKING:
    import pyarrow as pa

_STATE, _SPLITS = "state.json", "dataset_dict.json"  # of a folder of `save_to_disk`


@dataclass(frozen=True)
class TaskData:
    """One split of a task's data; ``column`` holds its pictures."""

    folder: Path
    column: str
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def picture(self, row: int, wanted: str) -> NDArray[np.uint8]:
        """Return the pixels of the row's picture, which has that identity.

        Tasks show files as Pillow opens them, turned as EXIF says or not, without transparency: it
        is the one of these that was seen.

        Raises:
            BadRecord: there is no such row, no picture in it, or another one.
        """
        where = f"document {row}"
        if not 0 <= row < len(self):
            raise BadRecord(f"{where}: {self.folder} has {len(self)} rows; is it the task's split?")
        for data in self._files(row):
            for rgb in _as_shown(data):
                if picture_id(rgb) == wanted:
                    return rgb
        raise BadRecord(
            f"{where}: the picture in row {row} of {self.folder} is not the one that was asked "
            "about: give the data of the task itself, in its order (tasks may leave documents out)"
        )

    def _files(self, row: int) -> Iterator[bytes]:
        held = self.table[self.column][row].as_py()
        for each in held if isinstance(held, list) else [held]:
            if each is None:
                continue
            if each.get("bytes") is not None:
                yield each["bytes"]
            elif each.get("path"):
                path = self.folder / each["path"]  # an absolute one stays as it is
                try:
                    yield path.read_bytes()
                except OSError as error:
                    raise BadRecord(f"document {row}: {path}: {error.strerror}") from error


def read_data(folder: Path, split: str | None = None, column: str | None = None) -> TaskData:
    """Return a split of a task's data.

    Args:
        folder: of `save_to_disk`, or of Parquet files.
        split: its name; None where there is only one.
        column: that holds pictures; None where only one does.

    Raises:
        TrainingError: no such data, several splits or columns to choose from.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder of data: give --data DIR")
    table = _table(folder, split)
    shown = [name for name in table.column_names if _holds_pictures(table.schema.field(name).type)]
    if column is None and len(shown) == 1:
        column = shown[0]
    if column is None or column not in shown:
        wanted = "no column holds" if column is None else f"{column} does not hold"
        raise TrainingError(
            f"{folder}: {wanted} the pictures; choose with --picture-column "
            f"({', '.join(shown) or 'there is none'})"
        )
    return TaskData(folder, column, table.select([column]))


def _table(folder: Path, split: str | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if (folder / _SPLITS).is_file():
            names = json.loads((folder / _SPLITS).read_text(encoding="utf-8"))["splits"]
            return _table(folder / _one(folder, names, split), None)
        if (folder / _STATE).is_file():
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            files = [folder / each["filename"] for each in state["_data_files"]]
            return pa.concat_tables([_stream(path) for path in files])
        parquet = sorted(folder.rglob("*.parquet"))
        of_split: dict[str, list[Path]] = {}
        for path in parquet:  # test-00000-of-00002.parquet, test/0000.parquet, test.parquet
            name = path.stem.partition("-")[0]
            of_split.setdefault(path.parent.name if name.isdecimal() else name, []).append(path)
        if not parquet:
            raise TrainingError(
                f"{folder} holds neither {_STATE} of save_to_disk nor Parquet: give --data DIR"
            )
        return pa.concat_tables(
            [pq.read_table(path) for path in of_split[_one(folder, list(of_split), split)]]
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"cannot read {folder}: {str(error).splitlines()[0]}") from error


def _stream(path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def _one(folder: Path, names: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names or wanted is None:
        asked = "several splits" if wanted is None else f"no split {wanted}"
        raise TrainingError(f"{folder} has {asked}: choose with --split {', '.join(names)}")
    return wanted


def _holds_pictures(kind: pa.DataType) -> bool:
    """Return whether a column is of pictures as `datasets` keeps them, or of lists of them."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _as_shown(data: bytes) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels that a task may have shown of a file, the service's own way first."""
    with contextlib.suppress(BadPicture):  # a format that Pillow alone knows
        yield decode_picture(data, CHECKED_BEFORE)
    yield from decoded_elsewhere(data, CHECKED_BEFORE)

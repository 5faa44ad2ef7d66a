"""A folder of Hugging Face's data as tables: Arrow files of `save_to_disk`, or the hub's Parquet.

Which files are of which split, their columns, and single pictures again later. Read as files:
nothing is fetched, no code of a dataset is run, its package is not needed. Knows layouts and Arrow;
does not know which columns ask what.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from training.errors import BadRecord, TrainingError

ROWS = 1000  # of an Arrow file at once
# data/train-00000-of-00004.parquet, train/0003.parquet, validation.parquet
_NUMBERED = re.compile(r"(?P<split>.*?)(-\d{5}-of-\d{5}(-[0-9a-f]+)?)?")


@dataclass(frozen=True)
class Split:
    """The files of one split, in their order."""

    name: str
    files: tuple[Path, ...]


def find_split(folder: Path, wanted: str | None) -> Split:
    """Return the files of a split; of the only one if none is wanted.

    Raises:
        TrainingError: there is no such split, or several to choose from.
    """
    if not folder.is_dir():
        raise TrainingError(f"the dataset folder {folder} does not exist")
    found = list(_saved(folder) or _parquet(folder))
    if not found:
        raise TrainingError(
            f"{folder} holds neither a dataset of save_to_disk (state.json) nor Parquet files"
        )
    names = ", ".join(sorted({split.name for split in found}))
    chosen = [split for split in found if wanted in (None, split.name)]
    if not chosen:
        raise TrainingError(f"{folder} has no split {wanted}; it has {names}")
    if len(chosen) > 1 and len({split.name for split in chosen}) > 1:
        raise TrainingError(f"{folder} has the splits {names}: choose one with --split")
    if len(chosen) > 1:
        inner = ", ".join(sorted(str(split.files[0].parent) for split in chosen))
        raise TrainingError(f"{folder} holds several datasets: give the folder of one ({inner})")
    return chosen[0]


def _saved(folder: Path) -> list[Split]:
    """Return the splits that `save_to_disk` wrote, of a dataset or of a dictionary of them."""
    if (folder / "state.json").is_file():
        state = _json(folder / "state.json")
        try:
            files = tuple(folder / each["filename"] for each in state["_data_files"])
        except (KeyError, TypeError) as error:
            raise BadRecord(f"{folder / 'state.json'} names no files") from error
        outside = [file for file in files if file.resolve().parent != folder.resolve()]
        if outside:
            raise BadRecord(f"{folder / 'state.json'} names a file outside of it: {outside[0]}")
        return [Split(state.get("_split") or folder.name, files)]
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits", [])
        return [
            Split(str(name), split.files) for name in names for split in _saved(folder / str(name))
        ]
    return []


def _parquet(folder: Path) -> list[Split]:
    """Return the splits of Parquet files, by their names or else by their folders'."""
    found: dict[tuple[Path, str], list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        inner = file.relative_to(folder)
        if any(part.startswith((".", "_")) for part in inner.parts):
            continue
        match = _NUMBERED.fullmatch(file.stem)
        name, place = (match["split"] if match else file.stem), file.parent
        if name.isdigit():  # 0003.parquet, as the hub converts: the folder is the split
            name, place = file.parent.name, file.parent.parent
        found.setdefault((place, name), []).append(file)
    return [Split(name, tuple(files)) for (_, name), files in found.items()]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRecord(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise BadRecord(f"{path} is not a JSON object")
    return content


def schema_of(split: Split) -> Any:
    """Return the Arrow schema of a split, from its first file."""
    file = split.files[0]
    with _told(file):
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_schema(file)
        return _arrow(file).schema


def chunks(split: Split, columns: Sequence[str]) -> Iterator[tuple[Path, int, int, Any]]:
    """Yield (file, row group, row of it, table) for parts of all files, in order."""
    import pyarrow.parquet as pq

    for file in split.files:
        with _told(file):
            if file.suffix == ".parquet":
                with pq.ParquetFile(file) as opened:
                    for group in range(opened.num_row_groups):
                        yield file, group, 0, opened.read_row_group(group, list(columns))
            else:
                table = _arrow(file).select(list(columns))
                for start in range(0, table.num_rows, ROWS):
                    yield file, 0, start, table.slice(start, ROWS)


@dataclass(frozen=True)
class StoredPicture:
    """One picture within a file of many; ``name`` is of its bytes."""

    name: str
    file: Path
    group: int
    row: int
    column: str
    folder: Path  # nothing outside it is read

    def read_bytes(self) -> bytes:
        """Return the picture as it was stored.

        Raises:
            OSError: it cannot be read any more.
        """
        import pyarrow as pa

        try:
            return picture_bytes(
                _column(self.file, self.group, self.column)[self.row].as_py(), self.folder
            )
        except (pa.ArrowException, BadRecord, IndexError, KeyError) as error:
            raise OSError(0, f"{self.file.name} has changed: {error}") from error


def picture_bytes(value: Any, folder: Path) -> bytes:
    """Return the file of one picture: its bytes, or what lies at its path within the folder.

    Raises:
        BadRecord: it is neither, or not one picture.
    """
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRecord(f"{len(value)} pictures; one question is about one picture")
        value = value[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise BadRecord("no picture" if not value else f"{value!r:.60} is no picture")
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadRecord(f"the picture path {value!r:.60} leads outside the dataset folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRecord(
            f"the picture {value!r:.60} cannot be read: {error.strerror or error}"
        ) from error


# Pictures are read in their order, so their neighbours are wanted next.
@lru_cache(maxsize=2)
def _column(file: Path, group: int, column: str) -> Any:
    if file.suffix != ".parquet":
        return _arrow(file)[column]
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, [column])[column]


@lru_cache(maxsize=8)
def _arrow(file: Path) -> Any:
    """Return an Arrow file as a table; it is mapped, not read."""
    import pyarrow as pa

    with pa.ipc.open_stream(pa.memory_map(str(file))) as stream:
        return stream.read_all()


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turn what Arrow raises into a line that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BadRecord(f"cannot read {file}: {str(error).partition(chr(10))[0]}") from error

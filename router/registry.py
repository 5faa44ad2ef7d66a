"""Which router is in force, and how it came to be: the read side of a registry folder.

A registry holds router folders and ``journal/``, one JSON file a change, numbered from 1 and never
changed again: what the highest number leaves in force is in force. Registries of before hold text
files ``current`` and ``previous`` instead and are read as well. It lies on a disk or in an object
store. Knows nothing of promotion, gates or what a router contains; needs no clock and no lock.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, overload

from router.errors import RouterFileError
from router.places import Place, StoredPlace, as_place, read_all

DEFAULT_REGISTRY = Path(".m3/registry")  # the service follows it, promotion writes it
JOURNAL = "journal"
Action = Literal["promote", "rollback", "quarantine", "try", "restrict"]
TrialKind = Literal["canary", "shadow"]
_ENTRY = re.compile(r"(\d{8,})\.json")
_DATED = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")  # folders of before: when, and of which bytes


@dataclass(frozen=True)
class Trial:
    """A router on trial beside the one in force.

    Attributes:
        kind: a canary answers its share of the sessions, a shadow only decides.
        router: its folder in the registry.
        share: of the sessions that it answers, or of the requests that it decides, in (0, 1].
    """

    kind: TrialKind
    router: str
    share: float


@dataclass(frozen=True)
class Restriction:
    """What the router in force is held to until it is certified anew, or replaced.

    Attributes:
        price: the price that it decides with; None: it does not decide, the anchor is read.
        why: the reason, in words.
    """

    price: float | None
    why: str


@dataclass(frozen=True)
class Entry:
    """One line of the journal, which tells the whole state: earlier ones need not be read for it.

    Attributes:
        seq: its number, from 1; 0 where pointers of before are read as an entry.
        action: what was done.
        before: ``from`` in the file. Of a promotion what was in force until then; of a rollback
            what went, of a quarantine what was named: both are in quarantine from then on; of
            a trial the router that is tried or was, of a restriction the one that is restricted.
        to: what is in force afterwards; None: the router that a service starts with.
        who, why: in words, "" where nothing was said.
        report: hash of the report that spoke for it.
        time_utc: by the clock of whoever wrote it; nothing is decided by it.
        forced: it was to be done whatever a gate or a quarantine said.
        trial: what is tried beside ``to`` from then on; None: nothing.
        restriction: what ``to`` is held to from then on; None: nothing.
    """

    seq: int
    action: Action
    before: str | None
    to: str | None
    who: str = ""
    why: str = ""
    report: str | None = None
    time_utc: str = ""
    forced: bool = False
    trial: Trial | None = None
    restriction: Restriction | None = None

    def to_bytes(self) -> bytes:
        """Return the content of its file."""
        content: dict[str, Any] = {
            "seq": self.seq, "action": self.action, "from": self.before, "to": self.to,
            "who": self.who, "why": self.why, "report": self.report, "time_utc": self.time_utc,
            "forced": self.forced,
        }  # fmt: skip
        for name in ("trial", "restriction"):
            if (told := getattr(self, name)) is not None:
                content[name] = asdict(told)
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def read(cls, path: Place) -> "Entry":
        """Return the entry of a file.

        Raises:
            RouterFileError: it cannot be read, or is torn, or is something else.
        """
        try:
            return cls.of(path, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RouterFileError(f"cannot read {path}: {error}") from error

    @classmethod
    def of(cls, path: Place, content: str | bytes | OSError) -> "Entry":
        """Return the entry of a file whose content was read, or could not be.

        Raises:
            RouterFileError: it could not, or is torn, or is something else.
        """
        try:
            if isinstance(content, OSError):
                raise content
            told = json.loads(content)
        except (OSError, ValueError, RecursionError) as error:
            raise RouterFileError(f"cannot read {path}: {error}") from error
        wrong = _fault(told, int(path.stem))
        if wrong:
            raise RouterFileError(f"{path} is no entry of a journal: {wrong}")
        return cls(
            told["seq"], cast(Action, told["action"]), told["from"], told["to"], told["who"],
            told["why"], told["report"], told["time_utc"], bool(told.get("forced")),
            *_trial_and_restriction(told),
        )  # fmt: skip


@overload
def entry_path(registry: Path, seq: int) -> Path: ...
@overload
def entry_path(registry: StoredPlace, seq: int) -> StoredPlace: ...
@overload
def entry_path(registry: Place, seq: int) -> Place: ...
def entry_path(registry: Place, seq: int) -> Place:
    """Return where the entry of a number lies."""
    return registry / JOURNAL / _file_name(seq)


def last_entry(registry: str | Place) -> Entry | None:
    """Return what was done last, or None where nothing was ever promoted.

    Raises:
        RouterFileError: it cannot be read.
    """
    root = as_place(registry)
    numbers = _numbers(root)
    if numbers:
        return Entry.read(entry_path(root, numbers[-1]))
    pointed = _pointed(root)
    # A writer may have turned pointers into a journal since the first look.
    return last_entry(root) if pointed is None and _numbers(root) else pointed


def later_entry(registry: Place, known: Entry | None) -> Entry | None:
    """Return the same to whoever knows what was done last a moment ago.

    A store is asked for the next entry alone, which costs a read a look however long the journal
    is; a disk is looked at anew.

    Raises:
        RouterFileError: it cannot be read.
    """
    while isinstance(registry, StoredPlace) and known is not None:
        path = entry_path(registry, known.seq + 1)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return known
        except OSError as error:
            raise RouterFileError(f"cannot read {path}: {error}") from error
        known = Entry.of(path, content)
    return last_entry(registry)


def history(registry: str | Place) -> tuple[Entry, ...]:
    """Return all that was done, the first first.

    Raises:
        RouterFileError: an entry is missing or cannot be read.
    """
    root = as_place(registry)
    last = last_entry(root)
    if last is None or last.seq == 0:
        return () if last is None else (last,)
    missing = sorted(set(range(1, last.seq + 1)) - set(_numbers(root)))
    if missing:
        raise RouterFileError(
            f"{entry_path(root, missing[0])} is missing: what is in quarantine cannot be told; "
            "put it back, or move the registry away and promote into a new one"
        )
    paths = [entry_path(root, seq) for seq in range(1, last.seq + 1)]
    return tuple(Entry.of(path, content) for path, content in read_all(paths))


@overload
def router_folder(registry: str | Path, entry: Entry | None) -> Path | None: ...
@overload
def router_folder(registry: Place, entry: Entry | None) -> Place | None: ...
def router_folder(registry: str | Place, entry: Entry | None) -> Place | None:
    """Return the folder of what an entry leaves in force; None: none of the registry's.

    Raises:
        RouterFileError: the folder is not there. A store is not asked: who loads it finds out.
    """
    if entry is None or entry.to is None:
        return None
    root = as_place(registry)
    told = entry_path(root, entry.seq) if entry.seq else root / "current"
    folder = root / entry.to
    if isinstance(folder, Path) and not folder.is_dir():
        raise RouterFileError(f"{told} names {entry.to!r}, but {folder} is not a folder")
    return folder


@overload
def current_router_path(registry: str | Path) -> Path | None: ...
@overload
def current_router_path(registry: Place) -> Place | None: ...
def current_router_path(registry: str | Place) -> Place | None:
    """Return the folder of the router in force; None: nothing was promoted, or all rolled back.

    Raises:
        RouterFileError: the last entry cannot be read, or what it names is not a folder in the
            registry.
    """
    return router_folder(registry, last_entry(registry))


def strangers(registry: str | Place) -> list[str]:
    """Return the names in the journal's folder that are no entries; hidden ones do not count."""
    return [name for name in _names(as_place(registry)) if not (_number(name) or name[0] == ".")]


def _numbers(root: Place) -> list[int]:
    return sorted(filter(None, map(_number, _names(root))))


def _number(name: str) -> int:
    """Return the number of an entry's file, 0 for any other name."""
    found = _ENTRY.fullmatch(name)
    number = int(found[1]) if found else 0
    return number if name == _file_name(number) else 0


def _file_name(seq: int) -> str:
    return f"{seq:08d}.json"


def _names(root: Place) -> list[str]:
    try:
        return sorted(path.name for path in (root / JOURNAL).iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        if (root / JOURNAL).exists():
            raise RouterFileError(f"{root / JOURNAL} is not a folder") from error
        return []
    except OSError as error:
        raise RouterFileError(f"cannot read {root / JOURNAL}: {error}") from error


def _fault(told: Any, seq: int) -> str:
    """Return what keeps the content of a file from being the entry of a number, "" if nothing."""
    if not isinstance(told, Mapping):
        return "it holds no JSON object"
    named, words = ("from", "to"), ("who", "why", "time_utc")
    missing = [key for key in ("seq", "action", *named, *words, "report") if key not in told]
    if missing:
        return f"it has no {', '.join(missing)}"
    if told["seq"] != seq:
        return f"it says that it is number {told['seq']!r}"
    if told["action"] not in get_args(Action):
        return f"it knows an action {told['action']!r}, this program {', '.join(get_args(Action))}"
    for key in named:
        if told[key] is not None and not _is_folder_name(told[key]):
            return f"{key} is {told[key]!r}, which is not a folder name"
    for key in (*words, "report"):
        if not isinstance(told[key], str) and (key != "report" or told[key] is not None):
            return f"{key} is {told[key]!r}, not a text"
    try:
        _trial_and_restriction(told)
    except (KeyError, TypeError, ValueError) as error:
        return f"its trial or restriction is damaged ({error})"
    return ""


def _trial_and_restriction(told: Mapping[str, Any]) -> tuple[Trial | None, Restriction | None]:
    """Return what an entry says of either; those of before say nothing."""
    trial, held = told.get("trial"), told.get("restriction")
    tried = None if trial is None else Trial(trial["kind"], trial["router"], float(trial["share"]))
    if tried is not None and (
        tried.kind not in get_args(TrialKind)
        or not _is_folder_name(tried.router)
        or not 0.0 < tried.share <= 1.0
    ):
        raise ValueError(f"no such trial: {trial!r}")
    if held is None:
        return tried, None
    price = held["price"]
    if price is not None and not 0.0 <= float(price) < math.inf:
        raise ValueError(f"no price: {price!r}")
    return tried, Restriction(None if price is None else float(price), str(held["why"]))


def _is_folder_name(name: Any) -> bool:
    """Return whether it names a sibling, nothing else: it must not lead out of the registry."""
    return isinstance(name, str) and bool(name) and name[0] != "." and not set(name) & set("/\\\0")


def _pointed(root: Place) -> Entry | None:
    """Return what the pointers of before say, as if it were an entry; stores never had any."""
    if isinstance(root, StoredPlace):
        return None
    name = _pointer(root / "current")
    if name is None:
        return None
    if not _is_folder_name(name):
        raise RouterFileError(f"{root / 'current'} holds {name!r}, which is not a folder name")
    try:
        other = _pointer(root / "previous")
    except RouterFileError:
        other = None
    if other is None or other == name or not _is_folder_name(other) or not (root / other).is_dir():
        other = None
    # A rollback exchanged the two: what lies behind is then the newer, and was taken back.
    dated = other is not None and all(map(_DATED.fullmatch, (name, other)))
    action: Action = "rollback" if dated and other is not None and other > name else "promote"
    return Entry(0, action, other, name, why="as the pointers of before say")


def _pointer(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RouterFileError(f"cannot read {path}: {error}") from error

"""Where the router in force lies: the read side of a registry folder.

A registry holds router folders and a text file ``current`` with the name of one of them; whoever
promotes swaps that file in one step. Knows nothing of promotion, gates or what a router contains.
"""

from pathlib import Path

from router.errors import RouterFileError

DEFAULT_REGISTRY = Path(".m3/registry")  # the service follows it, promotion writes it


def current_router_path(registry: str | Path) -> Path | None:
    """Return the folder of the router in force, or None where nothing was ever promoted.

    Raises:
        RouterFileError: ``current`` is not the name of a folder in the registry.
    """
    root = Path(registry)
    try:
        name = (root / "current").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RouterFileError(f"cannot read {root / 'current'}: {error}") from error
    # The pointer names a sibling, nothing else: it must not lead out of the registry.
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise RouterFileError(f"{root / 'current'} holds {name!r}, which is not a folder name")
    folder = root / name
    if not folder.is_dir():
        raise RouterFileError(f"{root / 'current'} names {name!r}, but {folder} is not a folder")
    return folder

"""What lies beside a router in the registry: where it comes from, and what spoke for it.

``lineage.json`` holds parent, hashes of data and model, code version, certificate and report;
``report-<hash>.json`` is the report. Neither is part of the router. Knows these files; does not
know what is in force.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from m3model.terminal import version
from router.folder import CARD_FILE
from router.places import Place, StoredPlace
from router.router import Router
from training.errors import TrainingError
from training.files import replacing, write_json

LINEAGE = "lineage.json"
REPORT = "report.json"  # as `evaluate` writes it
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Report:
    """A report as it was handed over."""

    content: bytes

    @property
    def hash(self) -> str:
        """Return 16 hex digits of its bytes: its name in the journal and beside the router."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    def keep(self, folder: Place) -> None:
        """Lay it beside the router, if it does not lie there."""
        path = report_path(folder, self.hash)
        if isinstance(path, StoredPlace):
            path.create(self.content)
        elif not path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(self.content)


def read_report(path: Path, router: Router) -> Report:
    """Return the report in a file, or in a folder of `m3-train evaluate`.

    Raises:
        TrainingError: it cannot be read, or is about another router.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        content = file.read_bytes()
        told = json.loads(content)
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read the report {file}: {error}") from error
    if not isinstance(told, dict):
        raise TrainingError(f"{file} is no report: it holds no JSON object")
    about = told.get("router_version", router.version)
    if about != router.version:
        raise TrainingError(f"{file} is about router {about}, not {router.version}")
    return Report(content)


def write_lineage(
    folder: Path, router: Router, digest: str, parent: str | None, report: Report | None
) -> None:
    """Write where the router in a folder comes from.

    Args:
        folder: with the router in it.
        router: as loaded.
        digest: sha256 of the folder's names and contents.
        parent: what the router was fitted to replace, where it says so itself, else this.
        report: what spoke for it, laid beside it.
    """
    facts, promised = router.metadata, router.held.certificate
    if report is not None:
        report.keep(folder)
    write_json(
        folder / LINEAGE,
        {
            "version": router.version,
            "sha256": digest,
            "parent": facts.get("parent", parent),
            "fitted_utc": facts.get("created_utc"),
            "data_hash": facts.get("data_hash"),
            "model_hash": facts.get("model_hash"),
            "label_recipe": facts.get("label_recipe"),
            "schema_hash": router.schema.hash,
            "code_version": code_version(),
            "card": CARD_FILE if (folder / CARD_FILE).is_file() else None,
            "certificate": None if promised is None else {
                "loss": promised.loss, "bounds": promised.bounds, "delta": promised.delta,
                "data_hash": promised.data_hash, "created_utc": promised.created_utc,
            },
            "report": None if report is None else report.hash,
        },
    )  # fmt: skip


def read_lineage(folder: Place) -> dict[str, Any]:
    """Return what is known of where a router comes from; nothing of registries of before."""
    return _object(folder / LINEAGE)


def reported(folder: Place, report_hash: str | None) -> dict[str, Any]:
    """Return what the report of a hash says, or else the one of the lineage; {} without any."""
    known = report_hash or read_lineage(folder).get("report")
    return _object(report_path(folder, str(known))) if known else {}


def report_path(folder: Place, report_hash: str) -> Place:
    """Return where a report lies beside a router."""
    return folder / f"report-{report_hash}.json"


@cache
def code_version() -> str:
    """Return the version of this program, in a checkout with its commit."""
    if not (_ROOT / ".git").exists():
        return version()
    try:
        asked = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return version()
    return f"{version()} ({done.stdout.strip()})"


def _object(path: Place) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}

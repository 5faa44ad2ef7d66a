"""How long `m3-train fit` takes on many rows, and how much memory: streamed, and all in memory.

Each fit is a process of its own, on oracle shards that were drawn and written block by block. The
peak is the kernel's high-water mark of that process; the constant is what it had before it read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _result import arguments, write

ROWS, QUICK_ROWS, FEATURES = 1_000_000, 100_000, 600
# What a fit may take on two cores, by rows: seconds, and GB above the constant.
LIMITS = {ROWS: (900.0, 8.0), QUICK_ROWS: (90.0, 0.8)}
EQUAL = 0.999  # of the test questions must be decided alike
TARGET = 0.98


def measure(rows: int, features: int, folder: Path, alone: bool = False) -> dict[str, Any]:
    """Return the report: a streamed fit, one in memory unless ``alone``, and how they agree."""
    from _scale.made import write_made

    data = write_made(folder / "oracle", rows, features)
    streamed = _child(data, features, folder / "streamed.npy", 0)
    report: dict[str, Any] = {"rows": rows, "features": features, "streamed": streamed}
    if not alone:
        report["in_memory"] = _child(data, features, folder / "memory.npy", 2**62)
        picks = [np.load(folder / f"{name}.npy") for name in ("streamed", "memory")]
        report["choices_equal"] = float((picks[0] == picks[1]).mean())
        report["same_router"] = streamed["predictor"] == report["in_memory"]["predictor"]
    if rows in LIMITS and features == FEATURES:
        seconds, gigabytes = LIMITS[rows]
        report["limits"] = {"seconds": seconds, "gb_above_constant": gigabytes}
    return report


def _child(data: Path, features: int, picks: Path, in_memory: int) -> dict[str, Any]:
    asked = f"{str(data)!r}, {features}, {str(picks)!r}, {in_memory}"
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent)])
    code = f"import fit_scale; fit_scale.fit_once({asked})"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"the fit ended with {ended.returncode}: {ended.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def fit_once(data: str, features: int, picks: str, in_memory: int) -> None:
    """Fit as `m3-train fit` does, keep the choices on test questions and print what it took."""
    import lightgbm  # noqa: F401  # before the constant is taken, as all that a fit loads
    import pyarrow.parquet  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    from _scale.made import schema_of

    from router.policy import choose_many
    from training.fitting.fit import fit
    from training.oracle.data import read_oracle
    from training.promotion.seen import write_seen

    constant, began, worked = peak_bytes(), time.monotonic(), time.process_time()
    found = read_oracle([Path(data)], in_memory=in_memory, schema=schema_of(features))
    read = time.monotonic() - began
    made = fit(found, target=TARGET, second_look=False)
    folder = made.router.save_pretrained(Path(picks).with_suffix(""))
    write_seen(folder, found)
    facts = {
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - worked,
        "read_seconds": read,
        "peak_gb": peak_bytes() / 1e9,
        "gb_above_constant": (peak_bytes() - constant) / 1e9,
        "questions": made.metrics["counts"],
        "trees": [booster.num_trees() for booster in made.router.predictor.boosters_],
        "accuracy": made.metrics["on_calibration"]["accuracy"],
        "visual_tokens": made.metrics["on_calibration"]["visual_tokens"],
        "predictor": made.router.predictor_hash,
    }
    test = found.split("test")
    values = np.asarray(made.router.predict_values(test.features), float)
    np.save(picks, choose_many(values, made.router.policy.costs, made.router.price))
    print(json.dumps(facts))


def peak_bytes() -> int:
    """Return the most memory that this process has held at once."""
    # Not getrusage: its figure starts at what the parent held.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Print the table; exit 1 where a streamed fit decides otherwise than one in memory."""
    parser = arguments(__doc__, quick=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--rows", type=int, help=f"questions (default {ROWS:,})")
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--alone", action="store_true", help="no fit in memory to compare with")
    asked = parser.parse_args()
    rows = asked.rows or (QUICK_ROWS if asked.quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="m3-fit-scale-") as folder:
        report = measure(rows, asked.features, Path(folder), asked.alone)
    print(f"{rows:,} rows x {asked.features} features")
    for name in ("streamed", "in_memory"):
        if (took := report.get(name)) is not None:
            print(
                f"{name:>10}: {took['seconds']:7.1f} s ({took['cpu_seconds']:.1f} s of CPU, "
                f"{took['read_seconds']:.1f} s to read), peak {took['peak_gb']:.2f} GB, "
                f"{took['gb_above_constant']:.2f} above the constant"
            )
    if "choices_equal" in report:
        print(f"choices equal: {report['choices_equal']:.2%}; one router: {report['same_router']}")
    write(report, asked.json)
    if report.get("choices_equal", 1.0) < EQUAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

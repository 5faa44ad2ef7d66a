"""Runs of lmms-eval, one a scale, read and compared: the same documents, asked the same way.

A run is a sample file (`{date}_samples_{task}.jsonl`) with the results file beside it. lmms-eval
0.7 hashes no document for models that take conversations (its ``doc_hash`` is that of ``null``), so
runs are compared by all that their samples hold: hash, target, input, conversation and pictures.
Knows those files; knows nothing of models, pictures' pixels or oracle records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.errors import BadRecord, MixedData, TrainingError
from training.lmms.told import Told

_FILE = re.compile(r"(?P<date>.+?)_samples_(?P<task>.+)\.jsonl")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # of a function, another in every process
# Of a sample, what is no metric.
_FIELDS = frozenset(
    {
        "doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "doc_hash",
        "token_counts", "input_media",
    }
)  # fmt: skip
# Of a run's results, what must be alike beside the task's own settings.
_ALIKE = ("limit", "offset", "gen_kwargs", "model_source")


@dataclass(frozen=True)
class Sample:
    """One answer of a run; ``scores`` are the task's metrics as they stand in the file."""

    doc_id: int
    doc_hash: str
    target: str
    input: str
    answer: str
    told: Told
    scores: dict[str, Any]

    @property
    def asked(self) -> tuple[Any, ...]:
        """All that must be the same in every run."""
        told = self.told
        return self.doc_hash, self.target, self.input, told.messages, told.picture_ids


@dataclass(frozen=True)
class Run:
    """One sample file: its task, the scale all pictures were read at, its samples by document, and
    what the results file says of how it was run.
    """

    path: Path
    task: str
    scale: int
    samples: dict[int, Sample]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The runs at a scale, coarsest first, and a line for each run of another kind."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]


def find_runs(places: Sequence[Path], task: str | None) -> Found:
    """Return the runs of one task in files and folders.

    Args:
        task: its name; None where there is only one.

    Raises:
        TrainingError: no run, several tasks, or a file that cannot be read.
    """
    found: dict[Path, str] = {}
    for path in _files(places):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise TrainingError(f"{path} is not a sample file of lmms-eval ({_FILE.pattern})")
        found[path.resolve()] = match["task"]
    if not found:
        raise TrainingError(
            f"no *_samples_*.jsonl in {', '.join(map(str, places))}: run lmms-eval with "
            "--log_samples --output_path"
        )
    tasks = sorted(set(found.values()))
    if task is None and len(tasks) > 1:
        raise TrainingError(f"runs of several tasks: choose one with --task {', '.join(tasks)}")
    wanted = tasks[0] if task is None else task
    if wanted not in tasks:
        raise TrainingError(f"no run of the task {wanted}, only of {', '.join(tasks)}")
    runs, left_out = list[Run](), list[str]()
    for path in (path for path, name in found.items() if name == wanted):
        samples = _samples(path)
        wishes = {sample.told.wish for sample in samples.values()}
        if len(wishes) == 1 and (wish := wishes.pop()).isdecimal():
            runs.append(Run(path, wanted, int(wish), samples, _settings(path, wanted)))
        else:
            left_out.append(f"{path.name}, which was not run at one scale")
    if not runs:
        raise TrainingError(f"no run at one scale among these, only {'; '.join(left_out)}")
    return Found(tuple(sorted(runs, key=lambda run: run.scale)), tuple(left_out))


def check_together(runs: Sequence[Run], scales: Sequence[int]) -> None:
    """Return if the runs are one a scale, of the same documents asked alike of the same model.

    Raises:
        MixedData: they are not; the first difference is named.
    """
    for one, other in pairwise(runs):
        if one.scale == other.scale:
            raise MixedData(
                f"{one.path.name} and {other.path.name} are both of scale {one.scale}: name one run"
            )
    told = [run.scale for run in runs]
    if told != list(scales):
        missing, strange = sorted(set(scales) - set(told)), sorted(set(told) - set(scales))
        why = f"no run at {_named(missing)}" if missing else f"the model has no {_named(strange)}"
        raise MixedData(f"runs at {_named(told)} of a model with {_named(scales)}: {why}")
    for run in runs[1:]:
        _check_pair(runs[0], run)


def score_of(sample: Sample, metric: str) -> float:
    """Return the score of a metric, which may stand in a dictionary as ``score``.

    Raises:
        TrainingError: it is no number in [0, 1].
    """
    value = sample.scores.get(metric)
    if isinstance(value, dict):
        value = value.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise TrainingError(
            f"document {sample.doc_id}: {metric} is {sample.scores.get(metric)!r:.60}, no score "
            "in [0, 1]: choose another --metric"
        )
    return float(value)


def metric_of_runs(runs: Sequence[Run], wanted: str | None) -> str:
    """Return the metric to import: the one that is named, or the only one.

    Raises:
        TrainingError: there are several, another one is named, or less of it is better.
    """
    first = next(iter(runs[0].samples.values()))
    names = sorted(first.scores)
    if wanted is None and len(names) != 1:
        raise TrainingError(
            f"the samples of {runs[0].task} hold {', '.join(names) or 'no metric'}: "
            "choose one with --metric"
        )
    name = names[0] if wanted is None else wanted
    if name not in names:
        raise TrainingError(f"the samples hold no {name}, they hold {', '.join(names)}")
    if runs[0].settings["higher_is_better"].get(name) is False:
        raise TrainingError(f"of {name} less is better: it says how wrong answers are, not right")
    return name


def _check_pair(one: Run, other: Run) -> None:
    names = f"{one.path.name} (scale {one.scale}) and {other.path.name} (scale {other.scale})"
    for key, mine in one.settings.items():
        if other.settings[key] != mine:
            raise MixedData(
                f"{names} were run with another {key} ({mine!s:.60} and "
                f"{other.settings[key]!s:.60}): run them alike"
            )
    for here, there, lacks in ((one, other, other), (other, one, one)):
        missing = sorted(set(here.samples) - set(there.samples))
        if missing:
            raise MixedData(
                f"{names} asked other documents: {len(missing)} are missing in {lacks.path.name}, "
                f"the first {_named(missing[:5])}"
            )
    for doc_id, mine in one.samples.items():
        theirs = other.samples[doc_id]
        if mine.asked != theirs.asked:
            what = ("doc_hash", "target", "input", "conversation", "pictures")
            pairs = zip(what, mine.asked, theirs.asked, strict=True)
            differing = [name for name, a, b in pairs if a != b]
            raise MixedData(f"{names} differ in document {doc_id}: {', '.join(differing)}")
        if mine.told.recipe != theirs.told.recipe:
            raise MixedData(
                f"{names} were answered by different recipes in document {doc_id} "
                f"({mine.told.recipe} and {theirs.told.recipe}): run one model alike"
            )


def _files(places: Sequence[Path]) -> Iterable[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(place.rglob("*_samples_*.jsonl"))
        elif place.is_file():
            yield place
        else:
            raise TrainingError(f"{place} is neither a folder nor a sample file of lmms-eval")


def _samples(path: Path) -> dict[int, Sample]:
    """Return the samples of a file by their documents."""
    samples: dict[int, Sample] = {}
    try:
        # Not splitlines: JSON may hold other line ends unescaped.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecord(f"cannot read {path}: {error!s:.80}") from error
    if lines == [""]:
        raise BadRecord(f"{path} holds no sample")
    for number, line in enumerate(lines, start=1):
        sample = _sample(line, f"{path.name}, line {number}")
        if sample.doc_id in samples:
            raise BadRecord(
                f"{path.name} holds document {sample.doc_id} twice: several filters, or two runs "
                "in one file; run the task with one"
            )
        samples[sample.doc_id] = sample
    return samples


def _sample(line: str, where: str) -> Sample:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise BadRecord(f"{where} is cut off or damaged: run the task again") from error
    try:
        counts = said["token_counts"]
        if not isinstance(counts, list) or len(counts) != 1 or not isinstance(counts[0], dict):
            raise ValueError("the model told nothing of one answer")
        return Sample(
            doc_id=int(said["doc_id"]),
            doc_hash=str(said["doc_hash"]),
            target=str(said["target"]),
            input=str(said["input"]),
            answer=_first(said.get("resps", said["filtered_resps"])),
            told=Told.from_json(counts[0]),
            scores={name: value for name, value in said.items() if name not in _FIELDS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(
            f"{where}: {error!s:.120}; samples of `--model m3` say which picture it was, without "
            "which they cannot be imported (nor may answers come from lmms-eval's --use_cache)"
        ) from error


def _first(answers: Any) -> str:
    """Return the one answer, out of the lists that it is wrapped in or not."""
    while isinstance(answers, list):
        if len(answers) != 1:
            raise ValueError(f"{len(answers)} answers to one document")
        answers = answers[0]
    return str(answers)


def _settings(path: Path, task: str) -> dict[str, Any]:
    """Return how a run was made, from the results beside it, as far as runs must be alike."""
    match = _FILE.fullmatch(path.name)
    date = path.name if match is None else match["date"]
    results = path.with_name(f"{date}_results.json")
    try:
        said = json.loads(results.read_text(encoding="utf-8"))
        of_task, config = said["configs"][task], said["config"]
        found = {f"{key} of the run": config.get(key, said.get(key)) for key in _ALIKE}
        found["version of the task"] = said.get("versions", {}).get(task)
        found["number of shots"] = said.get("n-shot", {}).get(task)
        found["system instruction"] = said.get("system_instruction")
        found["settings of the task"] = json.loads(_ADDRESS.sub(">", json.dumps(of_task)))
        found["higher_is_better"] = dict(said.get("higher_is_better", {}).get(task, {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(
            f"{results} does not tell how {path.name} was run ({type(error).__name__}: "
            f"{error!s:.80}): keep the results file beside the samples"
        ) from error
    return found


def _named(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

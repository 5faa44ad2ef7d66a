"""Errors of the offline tools: each carries one sentence that says what to do.

Knows nothing about where they are raised; the command line prints them as one line and exits 2.
"""

from __future__ import annotations


class TrainingError(ValueError):
    """A wrong input to an offline tool; ``str(error)`` is one line meant for the user."""


class BadRecord(TrainingError):
    """A record of a data file cannot be read; the message names the record."""


class ParametersDiffer(TrainingError):
    """An output folder was written by a run with other parameters."""


class MixedData(TrainingError):
    """Oracle data of different models, scales or feature schemas cannot be used together."""


class NotEnoughData(TrainingError):
    """Too few pictures or questions; the message says how many are needed."""


class ScoresSayNothing(TrainingError):
    """Scores that no router can be learnt, priced, certified or judged by; the message says why."""


class GateClosed(TrainingError):
    """A router candidate was not promoted because it is not better than the current one."""


class NotInForce(TrainingError):
    """A change was made for a router that is not in force any more."""


class Quarantined(TrainingError):
    """A router that was rolled back, or named bad, is not put in force again."""

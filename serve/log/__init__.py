"""Every decision and every piece of feedback, on disk for good, where others read it meanwhile."""

from serve.log.decisions import DecisionLog, LogCounts

__all__ = ["DecisionLog", "LogCounts"]

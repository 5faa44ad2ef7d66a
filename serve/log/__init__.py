"""Every decision and every piece of feedback as Parquet that other programs may read meanwhile."""

from serve.log.decisions import DecisionLog, LogCounts

__all__ = ["DecisionLog", "LogCounts"]

"""One thing that a doctor looks at, and what was found.

Knows words; knows nothing of how anything is examined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "bad"]
# What shows that the router in force answers worse than it was promoted to.
HARMFUL = ("router", "match", "accuracy", "certificate", "collapse")


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        name: of what was looked at.
        verdict: "bad" is what somebody must mend, "warning" what somebody should know.
        says: the finding, in a sentence.
        number: the figure that it rests on, if one.
        do: what to do, "" where nothing.
    """

    name: str
    verdict: Verdict
    says: str
    number: float | None = None
    do: str = ""

    @property
    def harms(self) -> bool:
        """Return whether the router should be restricted for it."""
        return self.verdict == "bad" and self.name in HARMFUL


def healthy(checks: Sequence[Check]) -> bool:
    """Return whether nothing is bad."""
    return all(check.verdict != "bad" for check in checks)


def harm_in_words(checks: Sequence[Check]) -> str:
    """Return why the router should be restricted, "" if it should not."""
    return "; ".join(check.says for check in checks if check.harms)

"""What the gateway writes down: a record of every request, pictures where asked for, feedback.

Knows the decision log and what may be stored; knows nothing of stages, retries or HTTP.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from router.records import DecisionRecord, FeedbackRecord
from serve.errors import BadRequest, NotFound, NotReady
from serve.gateway.call import Call
from serve.gateway.request_trace import Trace
from serve.log.receipts import AmbiguousId, Receipts
from serve.protocol import REPLY_ID_PREFIX, FeedbackRequest
from serve.settings import ServeSettings

if TYPE_CHECKING:
    from serve.log.decisions import DecisionLog


class RequestLog:
    """Writes into a decision log, or nowhere when there is none. Nothing here makes a caller wait.

    Args:
        log: of this process, or None.
        settings: of the service.
        scales: of the model, ascending.
    """

    def __init__(
        self, log: DecisionLog | None, settings: ServeSettings, scales: tuple[int, ...]
    ) -> None:
        self._log, self._settings, self._scales = log, settings, scales
        self._receipts = None if log is None else Receipts(log.secret, REPLY_ID_PREFIX)
        self._told: dict[str, int] = {}

    def name(self, trace: Trace) -> None:
        """Name a new request in the log, and its reply, if feedback can be given on that."""
        if self._receipts is not None:
            call = trace.call
            trace.logged_as = self._receipts.name(call.request_id, call.tenant)
            trace.signed_id = self.reply_id(call, trace.logged_as)

    def reply_id(self, call: Call, name: str | None = None) -> str | None:
        """Return an id for the reply that feedback can be given on; None: none can be given.

        Args:
            name: of the request in the log, where it is not its id.
        """
        if self._receipts is None:
            return None
        return self._receipts.reply_id(name or call.request_id, call.tenant)

    def write(self, trace: Trace) -> int:
        """Write a request down, with its pictures if they are kept; return how many of those are
        not, because too many wait.
        """
        if self._log is None or self._receipts is None:
            return 0
        if trace.status == "ok":
            self._receipts.remember(trace.call.request_id, trace.call.tenant, trace.logged_as)
        record = trace.decision_record(self._settings, self._scales, self._log.audits.draw())
        pictures: tuple[bytes, ...] = ()
        if trace.parsed is not None and self._settings.log_images and record.status == "ok":
            pictures = trace.parsed.pictures
        return self._log.append(record, pictures)

    def write_unread(self, call: Call, status: str) -> None:
        """Write a request down whose body could not be read."""
        if self._log is not None:
            self._log.append(
                DecisionRecord(
                    request_id=call.request_id, time_utc=datetime.now(UTC), picture_ids=(),
                    model="", scale=0, visual_tokens=0, reason="", status=status,
                    tenant=call.tenant or None,
                )
            )  # fmt: skip

    def feedback(self, body: FeedbackRequest, call: Call) -> None:
        """Write feedback down.

        Raises:
            BadRequest: it says nothing, or not on which of several answers.
            NotReady: there is no log.
            NotFound: on no answer that its tenant was given.
        """
        if body.reference is None and body.score is None:
            raise BadRequest(
                "The feedback says nothing. Send the right answer as 'reference', or a 'score' "
                "from 0 to 1.", "reference", "empty_feedback",
            )  # fmt: skip
        if self._log is None or self._receipts is None:
            raise NotReady(
                "This service keeps no decision log, so feedback cannot be stored. "
                "Start it with a log folder.", code="no_log",
            )  # fmt: skip
        try:
            request_id = self._receipts.request_of(body.request_id, call.tenant)
        except AmbiguousId as error:
            raise BadRequest(
                "Several answers were given to you under that id. Send the 'id' of the reply that "
                "is meant.", "request_id", "ambiguous_answer",
            ) from error  # fmt: skip
        if request_id is None:
            raise NotFound(
                "No answer of that id was given to you. Send the 'id' of the reply, which every "
                "gateway knows, with the key that asked; x-request-id does only where, and soon "
                "after, it was answered.", "request_id", "unknown_answer",
            )  # fmt: skip
        self._log.feedback(
            FeedbackRecord(
                request_id=request_id,
                time_utc=datetime.now(UTC),
                reference=body.reference,
                score=body.score,
                tenant=call.tenant or None,
            )
        )

    def news(self) -> dict[str, int]:
        """Return what went wrong since last asked, by the name of its metric: records (and at the
        end pictures) that were dropped, writes that failed.
        """
        if self._log is None:
            return {}
        counts = self._log.counts
        now = {"m3_log_dropped": counts.dropped, "m3_log_errors": counts.errors}
        before, self._told = self._told, now
        return {name: count - before.get(name, 0) for name, count in now.items()}

    async def settle(self) -> None:
        """Return when everything so far is on disk, or after some seconds."""
        if self._log is not None:
            await asyncio.to_thread(self._log.flush)

    def close(self) -> None:
        """Write what waits and stop."""
        if self._log is not None:
            self._log.close()

"""Which ids of answers are known again: by signature everywhere, by memory here."""

from __future__ import annotations

import hashlib
import hmac
import threading
from pathlib import Path

import pytest

from serve.errors import ServeSetupError
from serve.log import receipts
from serve.log.decisions import DecisionLog
from serve.log.receipts import SECRET_FILE, Receipts, shared_secret

PREFIX = "chatcmpl-"


def test_signed_ids_are_known_to_all_who_share_the_folder(tmp_path: Path) -> None:
    one = Receipts(shared_secret(tmp_path), PREFIX)
    other = Receipts(shared_secret(tmp_path), PREFIX)  # another gateway, or the same one later
    for request_id in ("abc", "a-b-c", "chatcmpl-own", "0123456789abcdef"):
        reply_id = one.reply_id(request_id, "alice")
        assert reply_id.startswith(f"chatcmpl-{request_id}-")
        for given in (reply_id, reply_id.removeprefix(PREFIX)):
            assert other.request_of(given, "alice") == request_id
            assert other.request_of(given, "bob") is None
            assert other.request_of(given, "") is None
        assert other.request_of(request_id, "alice") is None
        cut, wrong = reply_id[:-1], reply_id[:-1] + ("0" if reply_id[-1] != "0" else "1")
        assert other.request_of(cut, "alice") is None
        assert other.request_of(wrong, "alice") is None
    stranger = Receipts(b"another folder's", PREFIX)
    assert stranger.request_of(one.reply_id("abc", "alice"), "alice") is None
    assert one.request_of("", "") is None
    assert one.request_of("chatcmpl-ä-é", "") is None


def test_ids_of_before_are_known_on(tmp_path: Path) -> None:
    """They carried the signature alone, without what makes each another."""
    secret = shared_secret(tmp_path)
    signed = hmac.new(secret, b"abc\nalice", hashlib.sha256).hexdigest()[:16]
    assert Receipts(secret, PREFIX).request_of(f"chatcmpl-abc-{signed}", "alice") == "abc"
    assert Receipts(secret, PREFIX).request_of(f"chatcmpl-abc-{signed}", "bob") is None


def test_two_gateways_give_no_id_twice(tmp_path: Path) -> None:
    gateways = [Receipts(shared_secret(tmp_path), PREFIX) for _ in range(2)]
    names = [gateway.name("trace-1", "") for gateway in gateways]
    assert names == ["trace-1", "trace-1"]  # neither knows of the other
    one, other = (each.reply_id("trace-1", "") for each in gateways)
    assert one != other
    assert gateways[0].request_of(other, "") == "trace-1"


def test_request_ids_are_known_where_they_were_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "REMEMBERED", 3)
    here = Receipts(b"secret", PREFIX)
    here.remember("r", "alice")
    here.remember("chatcmpl-own", "alice")
    for given, tenant, found in [
        ("r", "alice", "r"), ("chatcmpl-r", "alice", "r"), ("r", "bob", None),
        ("chatcmpl-own", "alice", "chatcmpl-own"), ("own", "alice", None),
    ]:  # fmt: skip
        assert here.request_of(given, tenant) == found
    here.remember("r", "bob")  # named alike, by somebody else: both are known
    assert (here.request_of("r", "alice"), here.request_of("r", "bob")) == ("r", "r")
    here.remember("r", "alice")
    here.remember("s", "carol")  # the fourth: the one named longest ago is forgotten
    assert here.request_of("chatcmpl-own", "alice") is None
    assert here.request_of("r", "alice") == "r"


def test_one_secret_is_made_whoever_comes_first(tmp_path: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def come() -> None:
        start.wait()
        found.append(shared_secret(tmp_path))

    comers = [threading.Thread(target=come) for _ in range(8)]
    for comer in comers:
        comer.start()
    for comer in comers:
        comer.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    assert (tmp_path / SECRET_FILE).stat().st_mode & 0o777 == 0o600
    log = DecisionLog(tmp_path)
    log.close()
    assert log.secret == found[0]


def test_a_secret_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "WRITTEN_WITHIN_S", 0.0)
    (tmp_path / SECRET_FILE).write_text("half of")
    with pytest.raises(ServeSetupError, match=r"answers\.secret is damaged: delete it"):
        shared_secret(tmp_path)
    with pytest.raises(ServeSetupError, match=r"cannot make .*answers\.secret"):
        shared_secret(tmp_path / "nowhere")

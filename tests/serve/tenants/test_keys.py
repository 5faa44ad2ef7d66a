"""Keys: what a file may say, what of it is refused, how it is followed, what nobody gets to see."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.errors import ServeSetupError, Unauthorized
from serve.metrics import LocalMetrics
from serve.settings import API_KEYS_VARIABLE
from serve.tenants.keys import Key, environment_keys, given_keys, new_key, read_keys
from serve.tenants.live_keys import LiveKeys


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def entry(name: str, key: str, more: str = "") -> str:
    return f"- name: {name}\n  sha256: {sha256(key)}\n{more}"


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEYS_VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_file_names_keys_and_budgets(file: Path) -> None:
    limit = "  visual_tokens_per_minute: 5000\n"
    file.write_text(entry("alice", "a", limit) + entry("alice", "a2", limit) + entry("bob", "b"))
    assert read_keys(file) == (
        Key(name="alice", sha256=sha256("a"), visual_tokens_per_minute=5000),
        Key(name="alice", sha256=sha256("a2"), visual_tokens_per_minute=5000),
        Key(name="bob", sha256=sha256("b")),
    )
    file.write_text("[]")
    assert read_keys(file) == ()


A, B = sha256("a"), sha256("b")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe\xff", "cannot be read: not UTF-8"),
        ("", "the whole: Input should be a valid list"),
        ("keys: []", "the whole: Input should be a valid list"),
        ("- alice", "0: Input should be a valid dictionary"),
        ("- name: alice\n", "0.sha256: Field required"),
        (f"- {{name: alice, sha256: {A}, tokens: 5}}", "0.tokens: Extra inputs are not permitted"),
        (f"- {{name: a b, sha256: {A}}}", "0.name: String should match"),
        (f"- {{name: 5, sha256: {A}}}", "0.name: Input should be a valid string"),
        (f"- {{name: a, sha256: {A.upper()}}}", "0.sha256: String should match"),
        ("- {name: a, sha256: m3-open-sesame}", "0.sha256: String should match"),
        (f"- {{name: a, sha256: {A}}}\n- {{name: b, sha256: {A}}}", "entries 0 and 1 are one key"),
        (
            f"- {{name: a, sha256: {A}, visual_tokens_per_minute: 0}}",
            "0.visual_tokens_per_minute: Input should be greater than or equal to 1",
        ),
        (
            f"- {{name: a, sha256: {A}, visual_tokens_per_minute: 9}}\n- {{name: a, sha256: {B}}}",
            "1.visual_tokens_per_minute: another key of 'a' says 9",
        ),
        (f"- name: a\n  sha256: {A}\n  name: b\n  sha256: {B}\n", "line 1 says the same thing"),
        (f"- name: a\n  sha256: {A}\n  m3-open-sesame", "is not YAML, see line"),
        ("- *m3-open-sesame", "is not YAML"),
        ("- !m3-open-sesame x", "is not YAML"),
        (f"- {{name: a, sha256: {sha256('')}}}", "0.sha256: this is the digest of no key"),
        (f"- {{name: a, sha256: {sha256(chr(10))}}}", "0.sha256: this is the digest of no key"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path_and_unquoted(
    command: Any, file: Path, said: Any, told: str
) -> None:
    if said is not None:
        file.write_bytes(said if isinstance(said, bytes) else said.encode())
    done = command("m3-serve", "up", "--port", 0, "--api-keys-file", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(file) in done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert "sesame" not in done.stderr


def test_a_file_of_keys_lets_other_machines_in(command: Any, file: Path) -> None:
    file.write_text(entry("alice", "a"))
    everywhere = ("m3-serve", "up", "--host", "0.0.0.0", "--port", 0, "--router", "no/such/router")
    done = command(*everywhere)
    assert (done.returncode, "--api-keys-file" in done.stderr) == (2, True)
    done = command(*everywhere, "--api-keys-file", file)
    assert (done.returncode, "no/such/router does not exist" in done.stderr) == (2, True)


def test_the_environment_and_a_file_do_not_mix(
    command: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(entry("alice", "a"))
    assert given_keys(None) is None
    assert given_keys(file) == read_keys(file)
    monkeypatch.setenv(API_KEYS_VARIABLE, " one ")
    assert environment_keys() == (Key(name="default", sha256=sha256("one")),)
    monkeypatch.setenv(API_KEYS_VARIABLE, "one, two,,")
    assert [(key.name, key.sha256) for key in given_keys(None) or ()] == [
        ("key-1", sha256("one")), ("key-2", sha256("two")),
    ]  # fmt: skip
    done = command("m3-serve", "up", "--api-keys-file", file)
    assert done.returncode == 2
    assert "unset the variable" in done.stderr


def test_what_was_carried_counts_where_the_file_is_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = (Key(name="old", sha256=A),)
    assert given_keys(file, carried) == carried
    file.write_text(entry("new", "b"))
    assert [key.name for key in given_keys(file, carried) or ()] == ["new"]
    file.write_text("broken: [")
    with pytest.raises(ServeSetupError):  # a file that is there and wrong is no missing file
        given_keys(file, carried)
    monkeypatch.setenv(API_KEYS_VARIABLE, "one")
    assert given_keys(None, carried) == carried


def test_a_new_key_opens_what_its_entry_stands_in(command: Any, file: Path) -> None:
    made = [
        command("m3-serve", "key", "alice"),
        command("m3-serve", "key", "on", "--visual-tokens-per-minute", 700),
    ]
    file.write_text("".join(done.stdout for done in made))
    alice, on = read_keys(file)
    assert (alice.name, alice.visual_tokens_per_minute) == ("alice", None)
    assert (on.name, on.visual_tokens_per_minute) == ("on", 700)
    for done, key in zip(made, (alice, on), strict=True):
        (secret,) = re.findall(r"m3-[\w-]{43}", done.stderr)
        assert secret not in done.stdout
        assert LiveKeys((key,), LocalMetrics()).of(f"Bearer {secret}") == key
    assert alice.sha256 != on.sha256
    for wrong in (["a b"], ["x" * 65], ["a", "--visual-tokens-per-minute", 0]):
        done = command("m3-serve", "key", *wrong)
        assert (done.returncode, done.stdout) == (2, "")


def test_who_carries_which_key() -> None:
    keys = LiveKeys((Key(name="a", sha256=A), Key(name="b", sha256=B)), LocalMetrics())
    assert keys.are_asked_for
    assert [keys.of(f"{scheme} {key}").name for scheme, key in  # type: ignore[union-attr]
            (("Bearer", "a"), ("bearer", "b"), ("Bearer ", " b "))] == ["a", "b", "b"]  # fmt: skip
    for wrong in ("", "Bearer", "Bearer c", f"Bearer {A}", "a", "Basic a", "Bearer a b"):
        with pytest.raises(Unauthorized):
            keys.of(wrong)
    nobody = LiveKeys((), LocalMetrics())
    assert nobody.are_asked_for
    with pytest.raises(Unauthorized):
        nobody.of("Bearer a")
    everybody = LiveKeys(None, LocalMetrics())
    assert not everybody.are_asked_for
    assert everybody.of("") is None


class Followed:
    """Keys whose file is looked at when told, and what they say of it."""

    def __init__(self, file: Path) -> None:
        self.metrics = LocalMetrics()
        self.keys = LiveKeys(read_keys(file), self.metrics)
        self.keys._file = file

    def opens(self, key: str) -> bool:
        try:
            return self.keys.of(f"Bearer {key}") is not None
        except Unauthorized:
            return False

    def look(self) -> float:
        self.keys.look()
        (line,) = re.findall(r"^m3_api_keys_stale (.+)$", asyncio.run(self.metrics.text()), re.M)
        return float(line)


@pytest.fixture
def followed(file: Path) -> Followed:
    file.write_text(entry("alice", "a"))
    return Followed(file)


def test_a_file_is_followed(file: Path, followed: Followed) -> None:
    assert (followed.opens("a"), followed.opens("b"), followed.look()) == (True, False, 0.0)
    aside = file.with_suffix(".new")
    aside.write_text(entry("alice", "a") + entry("bob", "b"))
    aside.replace(file)
    assert (followed.look(), followed.opens("a"), followed.opens("b")) == (0.0, True, True)
    file.write_text(entry("bob", "b"))  # in place
    assert (followed.look(), followed.opens("a"), followed.opens("b")) == (0.0, False, True)
    file.write_text("[]")
    assert (followed.look(), followed.opens("b"), followed.keys.are_asked_for) == (0, False, True)


def test_a_broken_file_changes_nothing_and_is_told_once(
    file: Path, followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    for break_it in (
        lambda: file.write_text("- name: ["), lambda: file.write_text(""), file.unlink,
    ):  # fmt: skip
        caplog.clear()
        break_it()
        with caplog.at_level(logging.ERROR):
            assert [followed.look() for _ in range(3)] == [1.0] * 3
        assert len(caplog.records) == 1
        assert "the keys in force stay" in caplog.text
        assert followed.opens("a")
    file.write_text(entry("bob", "b"))
    assert (followed.look(), followed.opens("a"), followed.opens("b")) == (0.0, False, True)


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(
    file: Path, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(entry("bob", "b"))
    with monkeypatch.context() as disk:

        def fails(*_: object, **__: object) -> str:  # other threads read files meanwhile
            raise OSError(5, "Input/output error")

        disk.setattr(Path, "read_text", fails)
        assert (followed.look(), followed.opens("a")) == (1.0, True)
    assert (followed.look(), followed.opens("a"), followed.opens("b")) == (0.0, False, True)


def test_a_change_between_start_and_first_look_is_seen(file: Path, followed: Followed) -> None:
    file.write_text(entry("bob", "b"))
    followed.look()
    assert not followed.opens("a")


def test_entries_are_yaml_that_other_programs_read() -> None:
    _, said = new_key("no", 5)  # which YAML takes for false where it is not quoted
    assert yaml.safe_load(said)[0]["name"] == "no"

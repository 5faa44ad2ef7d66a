"""Words that mean places, and places in a store that are used as paths are."""

import importlib.machinery
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.places import NoPlace, StoredPlace, as_place, clients, read_all, remove_all, stored

PARTS = st.text("abz01.-_=", min_size=1, max_size=6).filter(lambda part: set(part) - {"."})


@pytest.fixture
def with_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the package is there is not the question."""
    monkeypatch.setattr(stored, "is_installed", lambda: True)


@pytest.mark.parametrize(
    ("words", "root", "key"),
    [
        ("s3://bucket", "s3://bucket", ""),
        ("s3://bucket/", "s3://bucket", ""),
        ("S3://bucket/log/", "s3://bucket", "log"),
        ("gs://b/a/b=c", "gs://b", "a/b=c"),
        ("az://account/container/log", "az://account/container", "log"),
    ],
)
@pytest.mark.usefixtures("with_obstore")
def test_addresses_are_places_in_a_store(words: str, root: str, key: str) -> None:
    found = as_place(words)
    assert found == StoredPlace(root, key)
    assert str(found) == (f"{root}/{key}" if key else root)
    assert as_place(found) is found


@pytest.mark.parametrize("words", ["log", "./s3:/bucket", "/a/b", ".", "s3:bucket", "C:\\log"])
def test_all_else_is_a_path(words: str) -> None:
    assert as_place(words) == Path(words)
    assert as_place(Path(words)) == Path(words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("file:///tmp/log", "s3://, gs://, az://"),
        ("https://bucket.s3.amazonaws.com/log", "s3://, gs://, az://"),
        ("s3://", "s3://bucket/folder"),
        ("s3:///log", "s3://bucket/folder"),
        ("s3://key:secret@bucket/log", "come from the environment"),
        ("s3://bucket/log?region=eu", "come from the environment"),
        ("s3://bucket/a//b", "s3://bucket/folder"),
        ("s3://bucket/../b", "s3://bucket/folder"),
        ("s3://bucket/a\nb", "s3://bucket/folder"),
        ("az://account", "az://account/container/folder"),
    ],
)
@pytest.mark.usefixtures("with_obstore")
def test_other_addresses_are_refused(words: str, why: str) -> None:
    with pytest.raises(NoPlace, match=why):
        as_place(words)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "find_spec", lambda name: None)
    with pytest.raises(NoPlace, match=r'^s3://b/log: .* pip install "m3-router\[stores\]"$'):
        as_place("s3://b/log")
    monkeypatch.setattr(
        clients, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None)
    )
    assert as_place("s3://b/log") == StoredPlace("s3://b", "log")


@given(st.lists(PARTS, min_size=1, max_size=4), PARTS)
def test_names_are_those_of_a_path(parts: list[str], other: str) -> None:
    path, place = PurePosixPath(*parts), StoredPlace("s3://bucket")
    for part in parts:
        place = place / part
    assert place.key == str(path)
    for name in ("name", "stem", "suffix"):
        assert getattr(place, name) == getattr(path, name)
    assert place.parent.key == ("" if len(parts) == 1 else str(path.parent))
    assert [each.key for each in place.parents][:-1] == [str(each) for each in path.parents][:-1]
    assert (place.parent / other).key == str(path.with_name(other))
    assert place.relative_to(StoredPlace("s3://bucket", parts[0])) == path.relative_to(parts[0])


def test_listings_are_those_of_a_folder(s3: str, tmp_path: Path) -> None:
    store, folder = as_place(s3), tmp_path / "folder"
    names = ["a.json", "b/c.json", "b/d.txt", "b/date=1/e.json", "ba.json", ".hidden/x.json"]
    for name in names:
        for place in (store, folder):
            target = place / name
            if isinstance(target, Path):
                target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(name.encode())
    assert isinstance(store, StoredPlace)
    for inner in ("", "b", "nowhere"):
        here, there = (folder / inner, store / inner) if inner else (folder, store)
        assert there.is_dir() == here.is_dir()
        if here.is_dir():
            assert [(each.name, each.is_dir(), each.is_file()) for each in there.iterdir()] == [
                (each.name, each.is_dir(), each.is_file()) for each in sorted(here.iterdir())
            ]
        for pattern in ("*.json", "*", "b*", "*/*.json", "b/*", "a.json", "b/c.*", "x.*"):
            assert [str(each.relative_to(there)) for each in there.glob(pattern)] == sorted(
                str(each.relative_to(here)) for each in here.glob(pattern) if each.is_file()
            )
        assert [str(each.relative_to(there)) for each in there.rglob("*.json")] == sorted(
            str(each.relative_to(here)) for each in here.rglob("*.json")
        )
    assert not (store / "b/none").exists()
    assert (store / "b/c.json").is_file()
    assert not (store / "b").is_file()
    with pytest.raises(FileNotFoundError):
        (store / "b").read_bytes()
    [found] = store.glob("a.json")
    assert found.stat().st_size == len("a.json")
    assert abs(found.stat().st_mtime - datetime.now(UTC).timestamp()) < 3600
    assert (store / "b/c.json").open().read() == b"b/c.json"
    many = [store / name for name in names]
    assert [content for _, content in read_all([*many, store / "none"])][:-1] == [
        name.encode() for name in names
    ]
    remove_all(many)
    assert not store.is_dir()


def test_writes_on_condition(s3: str) -> None:
    place = as_place(s3) / "one"
    assert isinstance(place, StoredPlace)
    assert place.create(b"1")
    assert place.create(b"1")  # as if the first reply had been lost
    assert not place.create(b"2")
    content, version = place.read_version()
    assert content == b"1"
    assert place.replace(b"2", version)
    assert not place.replace(b"3", version)
    assert not place.replace(b"3", None)
    assert place.read_bytes() == b"2"
    _, version = place.read_version()
    place.unlink()
    place.unlink()  # a store does not say
    assert not place.replace(b"3", version)
    assert place.replace(b"3", None)

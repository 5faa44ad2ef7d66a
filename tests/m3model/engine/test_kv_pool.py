"""The key-value pool against a table of who owns which page, kept by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from m3model.engine import kv_pool
from m3model.engine.kv_pool import PAGE_TOKENS, Extent, KVPool, Prefix, pool_for
from m3model.tiny import tiny_config

PAGES = 12


def small_pool(pages: int = PAGES) -> KVPool:
    cpu = torch.device("cpu")
    return KVPool(2, 1, 4, pages * PAGE_TOKENS, dtype=torch.float32, device=cpu)


def prefix(name: int, tokens: int, value: float = 0.0) -> Prefix:
    pictures = (torch.full((tokens, 4), value),)
    return Prefix(bytes([name]), bytes([name]), ((),), pictures, tokens)


def pages_of(extent: Extent) -> set[int]:
    return set(range(extent.first, extent.first + extent.pages))


class PoolMachine(RuleBasedStateMachine):
    """Requests come, go and leave prefixes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = small_pool()
        self.held: list[tuple[Extent, int]] = []

    @rule(tokens=st.integers(1, PAGES * PAGE_TOKENS))
    def reserve(self, tokens: int) -> None:
        wanted = -(-tokens // PAGE_TOKENS)
        extent = self.pool.reserve(tokens)
        taken = set().union(*(pages_of(held) for held, _ in self.held))
        if extent is None:
            # Refused only where no run of free pages, prefixes given up, is long enough.
            assert self.pool.pages_kept == 0
            runs, run = [0], 0
            for page in range(PAGES):
                run = 0 if page in taken else run + 1
                runs.append(run)
            assert max(runs) < wanted
        else:
            assert extent.pages == wanted
            assert not pages_of(extent) & taken
            assert pages_of(extent) <= set(range(PAGES))
            self.held.append((extent, tokens))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))[0])

    @rule(data=st.data(), name=st.integers(0, 3))
    def keep(self, data: st.DataObject, name: int) -> None:
        if self.held:
            extent, tokens = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.pool.keep(extent, prefix(name, data.draw(st.integers(1, tokens))))

    @invariant()
    def nothing_is_lost_or_owned_twice(self) -> None:
        kept = [k.extent for k in self.pool._kept.values()]
        free = [Extent(first, pages) for first, pages in self.pool._free]
        owned = [page for e in [*kept, *free, *(h for h, _ in self.held)] for page in pages_of(e)]
        assert sorted(owned) == list(range(PAGES))
        assert self.pool.pages_used == sum(h.pages for h, _ in self.held)
        assert self.pool.pages_kept == sum(e.pages for e in kept)
        # Neighbouring free runs are one run.
        assert all(a.first + a.pages < b.first for a, b in itertools.pairwise(free))

    def teardown(self) -> None:
        for extent, _ in self.held:
            self.pool.release(extent)
        assert self.pool.reserve(PAGES * PAGE_TOKENS) == Extent(0, PAGES)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_prefix_is_found_again_only_if_its_pictures_are_the_same() -> None:
    pool = small_pool()
    extent = pool.reserve(100)
    assert extent is not None
    pool.keep(extent, prefix(1, 40))
    assert (pool.pages_used, pool.pages_kept) == (0, 3)
    found = pool.kept(prefix(1, 40))
    assert found is not None
    assert (found[0].start, found[1]) == (extent.start, 40)
    assert pool.kept(prefix(1, 40, value=1.0)) is None  # same key, other picture
    shorter = pool.kept(prefix(1, 39))
    assert shorter is not None
    assert shorter[1] == 39
    assert pool.kept(prefix(2, 40)) is None


def test_of_another_reading_of_the_picture_what_is_the_same_lies_ready() -> None:
    """Three tokens of text before each picture; of several prefixes the longest in common."""
    pool = small_pool()
    picture = torch.arange(40.0)[:, None].expand(40, 4)

    def reading(name: int, alike: int, start: bytes = b"s") -> Prefix:
        tokens = torch.cat([picture[:alike], 100.0 + name + picture[alike:]])
        return Prefix(bytes([name]), start, ((1, 2, 3),), (tokens,), 43)

    places = {}
    for name, alike in ((1, 36), (2, 9), (3, 38)):
        extent = pool.reserve(43)
        assert extent is not None
        places[name] = extent.start
        pool.keep(extent, reading(name, alike, b"other" if name == 3 else b"s"))
    for wanted, place, tokens in ((reading(4, 37), 1, 39), (reading(5, 20), 1, 23)):
        found = pool.kept(wanted)
        assert found is not None
        assert (found[0].start, found[1]) == (places[place], tokens)
    assert pool.kept(reading(6, 40, b"third")) is None
    whole = pool.kept(reading(2, 9))
    assert whole is not None
    assert (whole[0].start, whole[1]) == (places[2], 43)
    assert pool.reserve(PAGES * PAGE_TOKENS) is not None  # everything is given up
    assert pool.kept(reading(4, 37)) is None


@given(
    mine=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=2, max_size=6),
    theirs=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=2, max_size=6),
)
def test_what_two_prompts_share_ends_at_the_first_token_that_differs(
    mine: list[list[int]], theirs: list[list[int]]
) -> None:
    """Texts and pictures in turn; numbers of a picture are other tokens than those of a text."""

    def made(parts: list[list[int]]) -> tuple[Prefix, list[tuple[int, int]]]:
        parts = parts[: len(parts) // 2 * 2]
        texts, pictures = parts[::2], [torch.tensor(each)[:, None] for each in parts[1::2]]
        flat = [(i % 2, token) for i, part in enumerate(parts) for token in part]
        return Prefix(b"", b"", tuple(texts), tuple(pictures), len(flat)), flat

    (one, ours), (other, others) = made(mine), made(theirs)
    alike = (i for i, (a, b) in enumerate(zip(ours, others, strict=False)) if a != b)
    wanted = next(alike, min(len(ours), len(others)))
    assert one.shared(other) == other.shared(one) == wanted


def test_the_longest_unused_prefix_goes_first_and_the_wanted_one_last() -> None:
    pool = small_pool(4)
    for name in (1, 2, 3):
        extent = pool.reserve(PAGE_TOKENS)
        assert extent is not None
        pool.keep(extent, prefix(name, PAGE_TOKENS))
    assert pool.kept(prefix(1, PAGE_TOKENS)) is not None  # used just now: 2 is the oldest
    assert pool.reserve(2 * PAGE_TOKENS, prefix(2, PAGE_TOKENS)) is not None
    assert pool.kept(prefix(2, PAGE_TOKENS)) is not None
    assert pool.kept(prefix(3, PAGE_TOKENS)) is None
    assert pool.reserve(5 * PAGE_TOKENS) is None


def test_copied_rows_are_the_same_in_every_layer() -> None:
    pool = small_pool()
    one, two = pool.reserve(30), pool.reserve(30)
    assert one is not None
    assert two is not None
    pool.keys[:, one.start : one.start + 30] = torch.randn(2, 30, 1, 4)
    pool.values[:, one.start : one.start + 30] = torch.randn(2, 30, 1, 4)
    pool.copy(one, two, 20)
    for store in (pool.keys, pool.values):
        assert torch.equal(
            store[:, one.start : one.start + 20], store[:, two.start : two.start + 20]
        )


def test_a_pool_has_the_models_shape_and_dtype() -> None:
    config = tiny_config(64).text_config
    weights = torch.nn.Linear(2, 2).bfloat16()
    pool = pool_for(weights, config, tokens=100, longest=50)
    assert pool.keys.shape == (2, 112, 4, 16)
    assert pool.keys.dtype == torch.bfloat16
    assert pool.bytes_per_token == 2 * 2 * 64 * 2
    assert 50 <= pool_for(weights, config, tokens=None, longest=50).tokens <= 64 * 50 + PAGE_TOKENS


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        small_pool(0)


def test_what_a_gpus_allocator_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second engine on a GPU that the first has left finds the same room."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20_000)
    assert kv_pool._free_bytes(torch.device("cuda")) == int(0.8 * 41_000)

"""`KVPool`: one store of keys and values for all requests, handed out in extents of whole pages.

A request reserves its whole extent (prompt and longest answer) before it starts, so nothing that
runs can run out of memory and nothing is ever preempted. Extents are contiguous: attention reads
them where they lie. What a finished request leaves may stay as a prefix for the next question
about the same picture, until the space is wanted. It knows no scheduling and no model code.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn

PAGE_TOKENS = 16
MOST_COMPARED = 8  # readings of one picture, kept or running, that are compared with a new one


@dataclass(frozen=True)
class Extent:
    """`pages` pages from page `first` on."""

    first: int
    pages: int

    @property
    def start(self) -> int:
        """Its first token's row in the pool."""
        return self.first * PAGE_TOKENS


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt, up to the end of its last picture: `tokens` tokens.

    It is `texts` (token ids) and `pictures` ((n_i, D) visual tokens) in turn. `key` finds what is
    probably the same, `start` what begins with the same text and the same first visual token:
    other foci of a picture, its coarse scale, the pictures of an earlier turn. Pictures that are
    written over later share nothing any more.
    """

    key: bytes
    start: bytes
    texts: tuple[Sequence[int], ...]
    pictures: tuple[torch.Tensor, ...]
    tokens: int
    versions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", tuple(map(_version, self.pictures)))

    def is_near(self, other: Prefix) -> bool:
        """Whether it is worth comparing how much both have in common."""
        return self.key == other.key or self.start == other.start

    def shared(self, other: Prefix) -> int:
        """How many first tokens both have in common: keys and values of theirs are the same."""
        same = 0
        for mine, theirs in zip(self._parts(), other._parts(), strict=False):
            alike = _alike(mine, theirs)
            same += alike
            if alike < max(len(mine), len(theirs)):
                break
        return min(same, self.tokens, other.tokens)

    def _parts(self) -> Iterator[Sequence[int] | torch.Tensor]:
        each = zip(self.texts, self.pictures, self.versions, strict=True)
        for text, picture, version in each:
            yield text
            if _version(picture) != version:
                return
            yield picture


@dataclass(frozen=True)
class _Kept:
    extent: Extent
    prefix: Prefix


class KVPool:
    """Keys and values (layers, rows, kv heads, head dim) and who owns which rows.

    All begin as zeros: what is masked is multiplied by nothing, which only numbers survive. On a
    CPU the rows of a head lie together: long contexts are read 1.5 to 3 times as fast.

    Args:
        layers, heads, head_dim: of the language model (its key and value heads).
        tokens: capacity; rounded up to whole pages.
        spare: tokens behind the pages, which are nobody's: rows that are not there write to them.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        tokens: int,
        *,
        spare: int = 0,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if tokens < 1:
            raise ValueError(f"a pool holds at least one token, not {tokens}")
        self.pages = pool_tokens(tokens) // PAGE_TOKENS
        rows = self.pages * PAGE_TOKENS + spare
        shape = (layers, rows, heads, head_dim)
        if by_head := device.type == "cpu":
            shape = (layers, heads, rows, head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.keys = keys.transpose(1, 2) if by_head else keys
        self.values = values.transpose(1, 2) if by_head else values
        self._free: list[tuple[int, int]] = [(0, self.pages)]  # (first, pages), by first
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        # Keys of what is kept, by start; of each the oldest first.
        self._starts: dict[bytes, dict[bytes, None]] = {}
        # Counted and not summed up: there may be thousands of extents, and every request asks.
        # Pages that hold prefixes of finished requests are given up when the space is wanted.
        self.pages_kept = self._pages_taken = 0

    @property
    def tokens(self) -> int:
        """How many tokens fit in all."""
        return self.pages * PAGE_TOKENS

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.keys[:, 0].numel() * self.keys.element_size()

    @property
    def pages_used(self) -> int:
        """Pages of requests in flight."""
        return self._pages_taken - self.pages_kept

    def reserve(self, tokens: int, prefix: Prefix | None = None) -> Extent | None:
        """An extent for `tokens` tokens, or None while it does not fit.

        Kept prefixes are given up for it, the longest unused first and `prefix` last.
        """
        pages = -(-tokens // PAGE_TOKENS)
        while (extent := self._first_fit(pages)) is None and self._kept:
            oldest = next(iter(self._kept))
            if prefix is not None and oldest == prefix.key and len(self._kept) > 1:
                self._kept.move_to_end(oldest)
                continue
            given_up = self._kept.pop(oldest)
            del self._starts[given_up.prefix.start][oldest]
            if not self._starts[given_up.prefix.start]:
                del self._starts[given_up.prefix.start]
            self.pages_kept -= given_up.extent.pages
            self.release(given_up.extent)
        return extent

    def release(self, extent: Extent) -> None:
        """Gives an extent back."""
        self._pages_taken -= extent.pages
        at = bisect_left(self._free, (extent.first, 0))
        first, end = extent.first, extent.first + extent.pages
        if at < len(self._free) and self._free[at][0] == end:
            end += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == first:
            at -= 1
            first = self._free.pop(at)[0]
        self._free.insert(at, (first, end - first))

    def keep(self, extent: Extent, prefix: Prefix) -> None:
        """Gives an extent back but for the pages of `prefix`, which it begins with."""
        if prefix.key in self._kept:
            self.release(extent)
            return
        pages = -(-prefix.tokens // PAGE_TOKENS)
        if pages < extent.pages:
            self.release(Extent(extent.first + pages, extent.pages - pages))
        self._kept[prefix.key] = _Kept(Extent(extent.first, pages), prefix)
        self._starts.setdefault(prefix.start, {})[prefix.key] = None
        self.pages_kept += pages

    def kept(self, prefix: Prefix) -> tuple[Extent, int] | None:
        """Where the most of a prefix lies ready, and how many tokens that are; None if nothing."""
        near = list(self._starts.get(prefix.start, ()))[-MOST_COMPARED:]
        most, key = 0, b""
        for each in dict.fromkeys([prefix.key, *reversed(near)]):
            if each in self._kept and most < prefix.tokens:
                shared = prefix.shared(self._kept[each].prefix)
                if shared > most:
                    most, key = shared, each
        if not most:
            return None
        self._kept.move_to_end(key)
        return self._kept[key].extent, most

    def clear(self, extent: Extent, first: int = 0, end: int | None = None) -> None:
        """Writes zeros over an extent, or some of its tokens: what is there may be no numbers."""
        end = extent.pages * PAGE_TOKENS if end is None else end
        for store in (self.keys, self.values):
            store[:, extent.start + first : extent.start + end].zero_()

    def copy(self, source: Extent, target: Extent, tokens: int) -> None:
        """Copies the rows of the first `tokens` tokens, in every layer."""
        for store in (self.keys, self.values):
            store[:, target.start : target.start + tokens] = store[
                :, source.start : source.start + tokens
            ]

    def check(self) -> None:
        """Returns if the memory can still be read.

        Raises:
            RuntimeError: the device is lost, and no request is to blame for its failure.
        """
        try:
            self.keys[(0,) * self.keys.dim()].item()
        except Exception as error:
            raise RuntimeError(f"the device does not answer: {error}") from error

    def free(self) -> None:
        """Gives the memory back, whoever still holds the pool; there is no reading it any more."""
        self.keys, self.values = self.keys.new_empty(0), self.values.new_empty(0)

    def _first_fit(self, pages: int) -> Extent | None:
        for at, (first, room) in enumerate(self._free):
            if room >= pages:
                self._free[at : at + 1] = [(first + pages, room - pages)] if room > pages else []
                self._pages_taken += pages
                return Extent(first, pages)
        return None


def _alike(mine: Sequence[int] | torch.Tensor, theirs: Sequence[int] | torch.Tensor) -> int:
    """How many first tokens are the same, of two texts or two pictures."""
    n = min(len(mine), len(theirs))
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if mine.dtype != theirs.dtype or mine.device != theirs.device:
            return 0
        if mine is theirs or torch.equal(mine, theirs):
            return n
        differs = (mine[:n] != theirs[:n]).any(dim=1)
        return int(differs.int().argmax()) if bool(differs.any()) else n
    return next((i for i in range(n) if mine[i] != theirs[i]), n)


def _version(picture: torch.Tensor) -> int:
    """How often it was written over; not known of tensors made for inference."""
    return 0 if picture.is_inference() else picture._version


def pool_tokens(tokens: int) -> int:
    """Tokens that fit a pool of this capacity: whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def pool_for(
    model: nn.Module, config: object, *, tokens: int | None, longest: int, spare: int = 0
) -> KVPool:  # fmt: skip
    """A pool for a language model, where its weights are and in their dtype.

    Args:
        model: the language model.
        config: its Hugging Face text config.
        tokens: capacity; None: four fifths of a GPU's free memory, or an eighth of what the
            machine has available, but no more than 64 x `longest` and no less than one `longest`.
        longest: the longest prompt plus answer.
        spare: as `KVPool` takes it.
    """
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    layers = int(config.num_hidden_layers)  # type: ignore[attr-defined]
    attention = int(config.num_attention_heads)  # type: ignore[attr-defined]
    heads = int(getattr(config, "num_key_value_heads", None) or attention)
    head_dim = int(
        getattr(config, "head_dim", None) or config.hidden_size // attention  # type: ignore[attr-defined]
    )
    if tokens is None:
        entry = 2 * layers * heads * head_dim * weight.dtype.itemsize
        room = _free_bytes(weight.device) // entry
        tokens = max(longest, min(room, 64 * longest) if weight.device.type == "cpu" else room)
    return KVPool(
        layers, heads, head_dim, tokens, spare=spare, dtype=weight.dtype, device=weight.device
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # What the allocator keeps for later counts as used there, and is free for us.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(0.8 * (torch.cuda.mem_get_info(device)[0] + cached))
    return int(psutil.virtual_memory().available // 8)

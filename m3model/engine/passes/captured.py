"""Steps of single tokens in buffers that never move, one set for every number of rows (rounded up
to a power of two): a GPU captures each as one graph and replays it without Python.

Rows that are not there read one token of their own at the end of the pool, which nobody else has.
It knows layouts and a function to run; nothing of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from m3model.engine.kv_pool import KVPool
from m3model.engine.passes.attention import VarlenStep
from m3model.engine.passes.chunks import Chunk

LOG = logging.getLogger(__name__)
WARM_UP = 2  # runs before a capture: kernels are chosen and libraries set up in them


@dataclass(frozen=True)
class Outcome:
    """(rows, vocabulary) logits in 32 bits, (rows,) the best ids and logarithms of the sums of the
    logits' exponentials."""

    logits: torch.Tensor
    best: torch.Tensor
    totals: torch.Tensor

    def of(self, rows: int) -> Outcome:
        """That of the first rows alone."""
        return Outcome(self.logits[:rows], self.best[:rows], self.totals[:rows])


Forward = Callable[[torch.Tensor, VarlenStep], Outcome]  # of (rows,) token ids


class FixedStep:
    """A step of so many rows, of which some may be missing.

    Args:
        forward: what a pass computes.
        pool: with room for `rows` tokens behind its pages (`KVPool.spare`).
        rows: how many.
        heads: query heads.
        longest: the longest context there may be.
    """

    def __init__(self, forward: Forward, pool: KVPool, rows: int, heads: int, longest: int) -> None:
        device, first = pool.keys.device, pool.tokens
        self._forward = forward
        self.rows = rows
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self._there = torch.zeros(rows, dtype=torch.long, device=device)
        missing = [Chunk(first + i, 0, 1, 1) for i in range(rows)]
        self.step = VarlenStep(pool, missing, heads, longest)
        self._missing = VarlenStep(pool, missing, heads, longest)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outcome: Outcome | None = None

    def load(self, ids: torch.Tensor, step: VarlenStep) -> None:
        """Takes over (n,) ids and the layout that reads them; the device does it all."""
        there = len(ids)
        self.ids.zero_()
        self.ids[:there].copy_(ids)
        self._there.zero_()
        self._there[:there].fill_(1)
        self.step.take(self._missing, self.rows)
        self.step.take(step, there)

    def run(self) -> Outcome:
        """What the rows say; the buffers are the next tokens' then.

        It is written over by the next run.
        """
        if self._graph is not None and self._outcome is not None:
            self._graph.replay()
            return self._outcome
        return self._run()

    def capture(self, pool: object) -> None:
        """Makes `run` one graph. To be called before anything is loaded.

        Args:
            pool: `torch.cuda.graph_pool_handle()` of all graphs that never run at the same time.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Others may use the device meanwhile, as an encoder in this process does.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            self._outcome = self._run()
        self._graph = graph

    def _run(self) -> Outcome:
        found = self._forward(self.ids, self.step)
        self.ids.copy_(found.best)
        self.step.advance_some(self._there)
        return found


class FixedSteps:
    """Those for 1, 2, 4, ... rows up to a number.

    Args:
        forward, pool, heads, longest: as `FixedStep` takes them.
        most: rows that a pass may have.
    """

    def __init__(self, forward: Forward, pool: KVPool, heads: int, longest: int, most: int) -> None:
        counts = [1 << bits for bits in range((most - 1).bit_length() + 1)]
        self._steps = [FixedStep(forward, pool, n, heads, longest) for n in counts]

    def capture(self) -> None:
        """Captures all of them, the largest first: the others fit into its memory."""
        handle = torch.cuda.graph_pool_handle()
        for step in reversed(self._steps):
            step.capture(handle)
        LOG.info("captured decode steps of 1 to %d rows", self._steps[-1].rows)

    def of(self, rows: int) -> FixedStep:
        """The smallest that so many rows fit."""
        return next(step for step in self._steps if step.rows >= rows)

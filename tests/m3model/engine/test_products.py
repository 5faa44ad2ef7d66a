"""Which library multiplies: it must round as well as torch's own, for any number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from m3model.engine.passes import products
from m3model.engine.passes.products import ONEDNN, PACKED, TORCH, best_product

FLOAT = torch.zeros(1)


@pytest.fixture(autouse=True)
def measured_anew() -> Iterator[None]:
    products._quickest_on_cpu.cache_clear()
    yield
    products._quickest_on_cpu.cache_clear()


@given(
    rows=st.integers(1, 70), width=st.integers(1, 90), out=st.integers(1, 90),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_a_product_is_as_exact_as_in_64_bits(rows: int, width: int, out: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    found, weight = (draw.standard_normal((n, width)).astype(np.float32) for n in (rows, out))
    wanted = found.astype(np.float64) @ weight.astype(np.float64).T
    for product in (ONEDNN, PACKED):
        told = product.of(torch.from_numpy(found), product.packed(torch.from_numpy(weight)))
        np.testing.assert_allclose(told.numpy(), wanted, atol=2e-5)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """To the last bit: an answer is the same in any company. Of weights as they are, from `FEW`
    rows on."""
    torch.manual_seed(0)
    found, weight = torch.randn(300, 96), torch.randn(160, 96)
    for product, fewest in ((ONEDNN, products.FEW), (PACKED, 2)):
        own = product.packed(weight)
        whole = product.of(found, own)
        for rows in (fewest, 7, 16, 17, 64, 299):
            assert torch.equal(product.of(found[:rows], own), whole[:rows])
            assert torch.equal(product.of(found[-rows:], own), whole[-rows:])


def test_many_rows_come_in_round_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is made for each number of rows that oneDNN meets."""
    seen: list[int] = []

    class Noted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if "linear_pointwise" in str(func):
                seen.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    weight = torch.ones(4, 8)
    with torch.no_grad(), Noted():
        for rows in (1, 5, 6, 16, 17, 24, 25, 528):
            assert torch.equal(ONEDNN.of(torch.ones(rows, 8), weight), torch.full((rows, 4), 8.0))
    assert seen == [6, 16, 24, 24, 32, 528]


def test_what_is_quicker_is_taken_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_seconds", lambda product, *_: 1.0 if product is TORCH else 0.5)
    assert best_product(FLOAT, 1000) is PACKED
    monkeypatch.setattr(products, "PACKED_SHARE", 0.0)  # no memory for a second copy
    assert best_product(FLOAT, 1000) is ONEDNN
    for other in (FLOAT.bfloat16(), FLOAT.double(), FLOAT.to("meta")):
        assert best_product(other, 1000) is TORCH


def test_a_little_quicker_is_not_worth_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_seconds", lambda product, *_: 1.0 if product is TORCH else 0.9)
    assert best_product(FLOAT, 1000) is TORCH


def test_a_library_that_is_wrong_or_missing_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operation")

    monkeypatch.setattr(products, "_seconds", lambda product, *_: 1.0 if product is TORCH else 0.1)
    for name in ("ONEDNN", "PACKED"):
        for of in (missing, lambda found, weight: 1.01 * linear(found, weight)):
            products._quickest_on_cpu.cache_clear()
            with monkeypatch.context() as patch:
                patch.setattr(products, name, replace(ONEDNN, of=of))
                assert best_product(FLOAT, 1000) is TORCH

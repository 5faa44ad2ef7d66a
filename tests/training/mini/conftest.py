"""A mini model of one layer each, for losses and for runs."""

from __future__ import annotations

import pytest
import torch

from training.mini.losses import (
    register_attention,
)
from training.mini.model import MiniModel, MiniShape, mini_tokenizer

SHAPE = MiniShape(
    width=32, vision_layers=1, vision_mlp=32, text_layers=1, text_mlp=32, relevance_width=8
)


@pytest.fixture(scope="module")
def tokenizer():
    register_attention()
    return mini_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = MiniModel(SHAPE, tokenizer, 12)
    with torch.no_grad():  # a fresh model answers the same everywhere
        model.m3.get_input_embeddings().weight.mul_(30)
    return model

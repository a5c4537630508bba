"""Fixtures of the adapter's tests."""

import pytest
import torch
from transformers import BlipForImageTextRetrieval

from .tiny import Net, blip_config, pair_of_blip


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def blip() -> BlipForImageTextRetrieval:
    torch.manual_seed(0)
    return BlipForImageTextRetrieval(blip_config()).eval()


@pytest.fixture
def pair() -> dict[str, torch.Tensor]:
    """One batch of two pictures and texts for `blip`."""
    return pair_of_blip()

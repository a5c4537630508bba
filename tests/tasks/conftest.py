"""What the tests of retrieval and of its objectives share."""

import pytest
import torch

from aurora_petl.baselines import apply_method
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings

WORDS = ["a red apple", "a dog", "the sun: sky, star", "two keys", "a red apple again", "rain"]


@pytest.fixture
def retrieval(backbone):
    """BLIP with an adapter, a queue and a momentum encoder."""
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 4})
    return Retrieval(backbone, RetrievalSettings(queue_size=8, alpha=0.4, momentum=0.9))


@pytest.fixture
def batch(backbone):
    """Six pairs of five pictures."""
    torch.manual_seed(1)
    size, texts = backbone.image_size, backbone.texts(WORDS, 35)
    return {
        "pixel_values": torch.randn(6, 3, size, size),
        "ids": torch.tensor([0, 1, 2, 3, 0, 4]),
        "input_ids": texts.ids,
        "attention_mask": texts.mask,
    }

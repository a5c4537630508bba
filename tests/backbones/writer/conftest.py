"""Tiny decoder models, made once."""

import inspect
from functools import cache

import pytest
from transformers import SmolVLMForConditionalGeneration

from aurora_petl.backbones import load_backbone
from tests.helpers.writers import make


@pytest.fixture(scope="session", autouse=True)
def recent():
    """Older releases of transformers, which other families go by, cannot run these models here."""
    if "mm_encoder_outputs" not in inspect.signature(SmolVLMForConditionalGeneration.forward).parameters:
        pytest.skip("decoder models need a newer transformers")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of the tiny models, by family, made when they are asked for."""
    root = tmp_path_factory.mktemp("writers")
    return cache(lambda kind: make(kind, root / kind))


@pytest.fixture(scope="session")
def loaded(folders):
    """The models as they are, which no test changes."""
    return cache(lambda kind: load_backbone(folders(kind), task="vqa"))

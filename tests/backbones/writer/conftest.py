"""Tiny decoder models, made once."""

from functools import cache

import pytest

from aurora_petl.backbones import load_backbone
from tests.helpers.writers import make, skip_if_old


@pytest.fixture(scope="session", autouse=True)
def recent():
    skip_if_old()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of the tiny models, by family, made when they are asked for."""
    root = tmp_path_factory.mktemp("writers")
    return cache(lambda kind: make(kind, root / kind))


@pytest.fixture(scope="session")
def loaded(folders):
    """The models as they are, which no test changes."""
    return cache(lambda kind: load_backbone(folders(kind), task="vqa"))

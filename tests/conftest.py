"""What several test files share."""

import pytest
import torch

from aurora_petl.backbones import load_backbone
from aurora_petl.data import load_dataset
from tests.helpers.pictures import make_folder

torch.set_num_threads(1)


@pytest.fixture
def backbone():
    return load_backbone("blip-mini")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """24 drawn pictures with captions in three splits."""
    return make_folder(tmp_path_factory.mktemp("pictures") / "shapes")


@pytest.fixture(scope="session")
def pictures(folder):
    return load_dataset(folder)

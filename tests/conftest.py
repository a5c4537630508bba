"""What several test files share."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: they run beside each other

import torch

from aurora_petl.backbones import load_backbone
from aurora_petl.data import load_dataset
from tests.helpers.pictures import make_folder

torch.set_num_threads(1)  # as many as in those processes, so that what they compute is equal to the bit


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

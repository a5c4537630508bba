"""The library that reads some forms of data."""

import pytest


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library ``datasets``, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets

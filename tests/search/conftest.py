"""Indexes of drawn pictures by blip-mini."""

import importlib.util

import pytest
import torch

from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, save_adapter
from aurora_petl.recipe import load_recipe
from aurora_petl.search import encoder, index, store
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from tests.helpers import postgres
from tests.helpers.pictures import make_folder


@pytest.fixture(scope="session")
def blip_mini():
    return encoder.load_encoder("blip-mini", "untuned")


@pytest.fixture(autouse=True)
def loaded_once(blip_mini, monkeypatch):
    """An encoder has no state, so tests share blip-mini's."""

    def load(model, view):
        return blip_mini if model == "blip-mini" else encoder.load_encoder(model, view)

    monkeypatch.setattr(index, "load_encoder", load)
    monkeypatch.setattr(store, "load_encoder", load)
    if importlib.util.find_spec("psycopg"):
        from aurora_petl.search.postgres import build

        monkeypatch.setattr(build, "load_encoder", load)


@pytest.fixture
def album(tmp_path):
    """Ten pictures, two captions each, as a person may change them."""
    return make_folder(tmp_path / "album", 10, splits=False)


@pytest.fixture(scope="session")
def run(tmp_path_factory, folder):
    """A run's folder with an adapter that nothing trained."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = load_recipe(None, [f"data={folder}", "method=aurora"])
    backbone = load_backbone(recipe.model)
    apply_method(backbone, "aurora")
    torch.manual_seed(0)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data.add_(0.05 * torch.randn_like(weight))
    out.mkdir()
    recipe.save(out / "recipe.yaml")
    save_adapter(backbone, out / "adapter")
    return out


@pytest.fixture(scope="session", name="library")
def indexed(tmp_path_factory, folder, run):
    """The 24 drawn pictures, indexed by the run."""
    out = tmp_path_factory.mktemp("indexes") / "shapes.index"
    build_index(folder, out, str(run), progress=False)
    return Library(out)


@pytest.fixture(scope="session")
def postgres_server():
    """The address of a server's database, without a library."""
    if why := postgres.lacks():
        pytest.skip(why)
    with postgres.server() as folder:
        yield f"postgresql://aurora@/aurora?host={folder}"


@pytest.fixture
def address(postgres_server, request):
    """The address of a library of the test's own."""
    return f"{postgres_server}&library={request.node.name[:40]}"

"""A folder to run the `aurora` command in, what it prints or refuses with, and runs that nothing trained."""

import re
from pathlib import Path

import pytest
import torch

from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, save_adapter
from aurora_petl.cli import main
from aurora_petl.recipe import load_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder, so that a default --out of runs/ would show."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def refusal(capsys):
    """Runs the command, which must fail with one line on stderr and nothing on stdout; the line."""

    def run(*words: object) -> str:
        try:
            status = main(list(map(str, words)))
        except SystemExit as stop:  # argparse
            status = stop.code
        out, err = capsys.readouterr()
        assert status in (1, 2) and not out
        assert err.count("\n") == 1 and re.match(r"aurora( \w+)?: error: ", err)
        return err.split("error: ", 1)[1].rstrip("\n")

    return run


@pytest.fixture
def printed(capsys):
    """Runs the command, which must succeed; what it printed."""

    def run(*words: object) -> str:
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().out

    return run


def tuned(folder: Path, out: Path, method: str) -> Path:
    """A run's folder with an adapter that nothing trained."""
    recipe = load_recipe(None, [f"data={folder}", f"method={method}"])
    backbone = load_backbone(recipe.model)
    apply_method(backbone, method)
    torch.manual_seed(0)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data.add_(0.05 * torch.randn_like(weight))
    out.mkdir()
    recipe.save(out / "recipe.yaml")
    save_adapter(backbone, out / "adapter")
    return out


@pytest.fixture(scope="session")
def runs(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    return {method: tuned(folder, path / method, method) for method in ("aurora", "heads")}

"""The scripts of examples/ run, on small models and data."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.families import make
from tests.helpers.pictures import make_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a script in an empty folder with pictures in it; what it prints."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "my_photos")

    def call(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_train_and_search(run):
    printed = run("train_on_own_pictures.py", "my_photos", "--out", "runs/mine", "--steps", "2").splitlines()
    assert printed[-2].startswith("mean recall on the test split: ") and printed[-1].startswith("gain ")
    printed = run("search_pictures.py", "my_photos", "a red circle", "--model", "runs/mine", "-k", "2").splitlines()
    assert "24 pictures" in printed and printed[-1].startswith("  2  ") and Path("my_photos.index").is_dir()
    with pytest.raises(SystemExit, match="already holds a run"):
        run("train_on_own_pictures.py", "my_photos", "--out", "runs/mine")


def test_clip_with_peft(run):
    make("clip", Path("clip"))
    printed = run("clip_with_peft.py", "my_photos", "--model", "clip", "--steps", "21").splitlines()
    losses = [float(line.split()[-1]) for line in printed if line.startswith("step ")]
    assert len(losses) == 2 and losses[1] < losses[0] and printed[-1].endswith("plain CLIPModel")


@pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("datasets")), reason="needs sentence-transformers, datasets"
)
def test_clip_with_sentence_transformers(run):
    make("clip", Path("clip"))
    printed = run("clip_with_sentence_transformers.py", "my_photos", "--model", "./clip", "--steps", "3").splitlines()
    assert printed[-1].startswith("'a red circle' finds: ")


def test_examples_are_short():
    scripts = list(EXAMPLES.glob("*.py"))
    assert len(scripts) == 4 and all(len(path.read_text("utf-8").splitlines()) <= 60 for path in scripts)

"""Outputs that go to a file: no command writes a bar into one, and with ``--quiet`` nothing but results."""

import sys

import pytest
import torch

from aurora_petl import demo
from aurora_petl.cli import COMMANDS, main
from aurora_petl.compare import Plan
from aurora_petl.notes import hushed, note
from aurora_petl.recipe import load_recipe
from tests.helpers.checkpoints import retrieval
from tests.helpers.pictures import make_folder
from tests.test_sharing import tuned

FEW = "train.max_steps=1 train.evaluations=1 train.batch_size=64 task.queue_size=0 method_options.r=2"
WORDS = {
    "demo": "demo --out OUT",
    "train": f"train --data DATA --out OUT {FEW}",
    "evaluate": "evaluate RUN --data DATA",
    "compare": f"compare {FEW.rpartition(' ')[0]} --data DATA --out OUT --methods heads --seeds 1 --rates 1e-3",
    "params": "params blip-mini",
    "convert": "convert original.pth --out OUT",
    "index": "index DATA --model blip-mini --out OUT",
    "search": "search circle --index shapes.index",
    "duplicates": "duplicates --index shapes.index",
    "serve": "serve --index shapes.index",
    "push": "push RUN you/mine --dry-run",
    "export": "export RUN OUT",
    "features": "features RUN DATA --out OUT.npz",
    "recipes": "recipes",
}
NOTED = {"train", "evaluate", "compare", "features"}  # which say as what they read the data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures in a form that is recognised, a run, an index and an original checkpoint."""
    place = tmp_path_factory.mktemp("place")
    data = make_folder(place / "shapes")
    (data / "captions.jsonl").rename(data / "metadata.jsonl")
    text = (data / "metadata.jsonl").read_text()
    (data / "metadata.jsonl").write_text(text.replace('"image"', '"file_name"').replace('"caption"', '"text"'))
    run = tuned(place / "run")
    recipe = load_recipe(run / "recipe.yaml")
    recipe.data = str(data)
    recipe.save(run / "recipe.yaml")
    torch.save({"model": retrieval()}, place / "original.pth")
    assert main(["index", str(data), "--model", "blip-mini", "--out", str(place / "shapes.index"), "--quiet"]) == 0
    return place


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["", "quiet"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_gets_no_bars_and_quietly_results_alone(command, quiet, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    made = Plan(load_recipe("emoji", [f"data={place / 'shapes'}", *FEW.split()]), ("heads",), 1, known={"heads": 1e-3})
    monkeypatch.setattr(demo, "plan", lambda seeds: made)
    monkeypatch.setattr(demo, "AURORA", "heads")
    monkeypatch.setitem(demo.RATES, "heads", 1e-3)
    monkeypatch.setattr("aurora_petl.search.serve.serve", lambda *_: print("http://"))
    words = WORDS[command].replace("DATA", "shapes").replace("RUN", "run").replace("OUT", str(tmp_path / "out"))
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = (tmp_path / name).open("w")
        monkeypatch.setattr(sys, name, streams[name])
    try:
        status = main([*words.split(), *quiet])
    finally:
        for stream in streams.values():
            stream.close()
        monkeypatch.undo()
    out, err = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
    assert status == 0 and out, err
    assert not any(mark in out + err for mark in ("\r", "\x1b", "█", "%|", "it/s"))
    if quiet:
        assert err == ""
    else:
        assert bool(err) >= (command in NOTED) and all(line.startswith("aurora: ") for line in err.splitlines())


def test_every_command_is_tried():
    assert WORDS.keys() == COMMANDS.keys()


def test_notes_are_hushed_within_a_command_alone(capsys):
    with hushed(True):
        note("one")
    note("two\nlines")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aurora: two") and line.endswith("lines")

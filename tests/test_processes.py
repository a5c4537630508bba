"""Commands under several processes, as torchrun starts them: one result, each rank its share of the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.training import _checkpoint, train
from tests.helpers.pictures import make_folder
from tests.helpers.short_runs import free_port
from tests.test_checkpoints import write as write_checkpoint

COUNT = """
import sys
from aurora_petl.cli import main
from aurora_petl.backbones.blip import model as blip
match = blip.BlipBackbone.match
def counted(self, texts, *args, **rest):
    with open(sys.argv[1], "a") as file:
        file.write(f"{len(texts)}\\n")
    return match(self, texts, *args, **rest)
blip.BlipBackbone.match = counted
sys.exit(main(sys.argv[2:]))
"""


def as_ranks(cwd: Path, *words: object, count: int = 2, spy: str = "") -> list[tuple[int, str, str]]:
    """Status, output and errors of every rank of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, *(["-c", spy, f"pairs{rank}"] if spy else ["-m", "aurora_petl.cli"]), *map(str, words)],
            cwd=cwd,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=400) for process in running]
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "run"
    fields = [
        f"data={folder}",
        "train.batch_size=6",
        "train.max_steps=2",
        "train.evaluations=1",
        "train.precision=fp32",
    ]
    train(load_recipe(None, [*fields, "task.queue_size=0", "method_options.r=4"]), out, progress=False)
    return out


def test_evaluate_gives_one_table_and_the_figures_of_one_process(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--json", str(tmp_path / "one.json")]) == 0  # leaves its cache in the run
    one = capsys.readouterr().out
    ranks = as_ranks(tmp_path, "evaluate", run, "--json", "two.json", spy=COUNT)
    assert [status for status, _, _ in ranks] == [0, 0], ranks
    assert ranks[0][1] == one and ranks[1][1] == ""
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
    pairs = [sum(map(int, (tmp_path / f"pairs{rank}").read_text().split())) for rank in range(2)]
    assert pairs[0] == pairs[1] > 0 and sum(pairs) == 6 * 12  # every picture with every text, once


def test_an_error_of_all_ranks_is_one_line(run, tmp_path):
    ranks = as_ranks(tmp_path, "evaluate", run, "--split", "tset")
    assert [status for status, _, _ in ranks] == [1, 1]
    assert ranks[0][2].startswith("aurora: error: ") and ranks[0][2].count("\n") == 1 and ranks[1][2] == ""


def test_broken_pictures_are_left_out_by_all_ranks(tmp_path):
    folder = make_folder(tmp_path / "mine")
    for number in (1, 2, 22):
        path = folder / f"images/{number}.png"
        path.write_bytes(path.read_bytes()[:100])
    fields = ["task.queue_size=0", "train.batch_size=4", "train.max_steps=2", "train.evaluations=1"]
    words = ["train", "--data", folder, *fields, "method_options.r=2", "--quiet"]
    stopped = as_ranks(tmp_path, *words, "--out", "run")
    assert [status for status, _, _ in stopped] == [1, 1]
    assert "images/1.png" in stopped[0][2] and "images/22.png" in stopped[0][2] and stopped[1][2] == ""
    ranks = as_ranks(tmp_path, *words, "broken=skip", "--out", "skipped")
    assert [status for status, _, _ in ranks] == [0, 0], ranks
    assert "3 of 24 pictures left out" in ranks[0][1] and ranks[1][1] == ""
    assert json.loads((tmp_path / "skipped/metrics.json").read_text())["steps"] == 2


def test_resume_needs_as_many_processes_as_before(tmp_path):
    write_checkpoint(tmp_path / "checkpoints", 3)  # by two processes
    with pytest.raises(AuroraError, match="checkpoint-3 was written by 2 processes, and this run has 1"):
        _checkpoint(tmp_path)

"""Checkpoints give back what was written, and damaged ones are passed over."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from aurora_petl import checkpoints, files
from aurora_petl.errors import AuroraError

CPU = torch.device("cpu")


def some_optimizer(steps: int) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}])
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step + 1))).square().sum().backward()
        optimizer.step()
    return model, optimizer


def write(folder, step, **facts):
    model, optimizer = some_optimizer(step)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    generators = [checkpoints.random_state(CPU), checkpoints.random_state(CPU)]
    text = json.dumps({"global_step": step})
    checkpoints.write(folder, step, state, optimizer.state_dict(), generators, text, facts)


def test_an_optimizer_goes_on_as_if_there_was_no_break(tmp_path):
    write(tmp_path, 3, best={"step": 3, "metric": 0.1 + 0.2})
    checkpoint, problems = checkpoints.newest(tmp_path)
    assert problems == [] and checkpoint.step == 3 and checkpoint.facts["best"]["metric"] == 0.1 + 0.2
    model, optimizer = some_optimizer(0)
    model.load_state_dict(checkpoint.tensors(checkpoints.STATE))
    optimizer.load_state_dict(checkpoints.optimizer_state(checkpoint))
    model(torch.full((1, 3), 4.0)).square().sum().backward()
    optimizer.step()
    whole, _ = some_optimizer(4)
    assert torch.equal(model.weight, whole.weight) and torch.equal(model.bias, whole.bias)


def test_random_generators_go_on_as_if_there_was_no_break():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    random.gauss(0, 1)  # leaves a second number behind
    np.random.normal()
    states = checkpoints.random_state(CPU)

    def draw():
        return random.random(), random.gauss(0, 1), np.random.normal(), np.random.random(), torch.rand(2).tolist()

    expected = draw()
    draw()
    checkpoints.set_random_state(states, CPU)
    assert draw() == expected


NAMES = ["training_state.safetensors", "optimizer.safetensors", "random-1.safetensors", "trainer_state.json"]
INDEXES = {
    "a list": [],
    "another step": {"format": 1, "step": 4, "ranks": 2, "files": {}, "optimizer": {}},
    "no files": {"format": 1, "step": 5, "ranks": 2, "files": {}, "optimizer": {}},
    "another format": {"format": 9, "step": 5, "ranks": 2, "files": {}, "optimizer": {}},
}


@pytest.mark.parametrize("harm", ["remove", "empty", "cut", "flip", "folder"])
@pytest.mark.parametrize("name", [*NAMES, "checkpoint.json"])
def test_a_damaged_checkpoint_is_passed_over(name, harm, tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 5)
    path = tmp_path / "checkpoint-5" / name
    data = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "remove":
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": data[:middle], "flip": flipped}[harm])
    checkpoint, (problem,) = checkpoints.newest(tmp_path)
    assert checkpoint.step == 2 and str(tmp_path / "checkpoint-5" / name) in problem
    assert not (tmp_path / "checkpoint-5").exists() and (tmp_path / "damaged-5").is_dir()  # set aside, not removed
    write(tmp_path, 5)  # the step can be written again, and damaged again
    (tmp_path / "checkpoint-5/checkpoint.json").unlink()
    assert checkpoints.newest(tmp_path)[0].step == 2
    assert {place.name for place in tmp_path.iterdir()} == {"checkpoint-2", "damaged-5", "damaged-5-2"}


def test_an_index_with_one_other_value_is_passed_over(tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 5, best={"step": 5, "metric": float("nan")})  # JSON has no NaN
    assert checkpoints.newest(tmp_path)[0].step == 5
    path = tmp_path / "checkpoint-5/checkpoint.json"
    facts = json.loads(path.read_text())
    facts["optimizer"]["groups"][0]["betas"] = True
    path.write_text(json.dumps(facts))
    checkpoint, (problem,) = checkpoints.newest(tmp_path)
    assert checkpoint.step == 2 and problem == f"{path} is not as it was written"


def test_a_pipe_in_a_checkpoint_is_passed_over(tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 5)
    (tmp_path / "checkpoint-5" / NAMES[1]).unlink()
    os.mkfifo(tmp_path / "checkpoint-5" / NAMES[1])
    assert checkpoints.newest(tmp_path)[0].step == 2


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_is_another_is_passed_over(case, tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 5)
    files.write_json(tmp_path / "checkpoint-5/checkpoint.json", INDEXES[case])
    checkpoint, problems = checkpoints.newest(tmp_path)
    assert checkpoint.step == 2 and len(problems) == 1


def test_odd_names_are_no_checkpoints(tmp_path):
    write(tmp_path, 2)
    for name in ("checkpoint-x", "checkpoint--3", "checkpoint-٣", f"checkpoint-{'9' * 50}", "checkpoint-", "other-7"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    checkpoint, problems = checkpoints.newest(tmp_path)
    assert checkpoint.step == 2 and problems == []
    assert checkpoints.newest(tmp_path / "nowhere") == (None, [])


def test_the_newest_and_the_best_stay(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, {1})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3", "checkpoint-4"}
    checkpoints.prune(tmp_path)
    assert checkpoints.steps(tmp_path) == [3, 4]


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path, monkeypatch):
    write(tmp_path, 2)

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert checkpoints.newest(tmp_path)[0].step == 2


def test_a_checkpoint_moved_to_another_name_is_refused(tmp_path):
    write(tmp_path, 2)
    shutil.move(tmp_path / "checkpoint-2", tmp_path / "checkpoint-7")
    with pytest.raises(AuroraError, match="another step than its name"):
        checkpoints.read(tmp_path / "checkpoint-7")

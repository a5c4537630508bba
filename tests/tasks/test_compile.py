"""The loss of a training step as one graph of torch.compile, of every family: the same losses and gradients, with one
graph for each shape of batches."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from aurora_petl.backbones.writer.model import WriterBackbone
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks import base
from aurora_petl.tasks.base import Task
from aurora_petl.training import train
from tests.helpers import families, writers
from tests.helpers.steps import BLIP, make_task

WHOLE = (*BLIP, *families.DUAL, *families.MATCHERS, *writers.WRITERS)
QUICK = ("blip", "clip", "paligemma", "qwen2_vl", "smolvlm")


@pytest.fixture
def fresh():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def two_steps(task, batch) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of two steps, between which averages and queue advance, and the sum of their gradients."""
    torch.manual_seed(3)
    task.zero_grad(set_to_none=True)
    losses = []
    for _ in range(2):
        parts = task(**batch)
        parts["loss"].backward()
        losses.append({name: part.item() for name, part in parts.items()})
    return losses, {name: weight.grad.clone() for name, weight in task.trained() if weight.grad is not None}


def compare(kind, folder, backend) -> None:
    if kind in writers.WRITERS:
        writers.skip_if_old()
    task, rows = make_task(kind, folder)
    start = {name: value.clone() for name, value in task.training_state().items()}
    expected, gradients = two_steps(task, task.collate(rows))
    task.load_training_state(start)
    task.compile_loss(backend)
    losses, found = two_steps(task, task.collate(rows))  # padded to a few lengths
    for own, other in zip(expected, losses, strict=True):
        assert other == pytest.approx(own, rel=1e-5)
    assert found.keys() == gradients.keys()
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-5 * whole + 1e-4 * gradient.norm(), name
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in WHOLE])
def test_a_step_is_one_graph(kind, tmp_path, fresh):
    compare(kind, tmp_path, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_a_step_is_one_graph_with_its_backward_pass(kind, tmp_path, fresh):
    compare(kind, tmp_path, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blip", "clip"])
def test_a_step_is_one_graph_of_inductor(kind, tmp_path, fresh):
    compare(kind, tmp_path, "inductor")


def test_texts_of_other_lengths_take_the_same_graph(tmp_path, fresh):
    task, rows = make_task("clip", tmp_path)
    task.compile_loss("eager")
    for place in range(3):
        task(**task.collate(rows[place:] + rows[:place]))["loss"].backward()
    short = [row | {"caption": "a"} for row in rows]
    assert task.collate(short)["input_ids"].shape == (6, 8)
    task(**task.collate(short))["loss"].backward()
    assert counters["stats"]["unique_graphs"] <= 2


def test_what_cannot_be_captured_is_one_line(tmp_path, fresh, monkeypatch):
    writers.skip_if_old()
    monkeypatch.setattr(WriterBackbone, "before_graph", lambda self, batch: batch)  # the vision tower is in the graph
    task, rows = make_task("smolvlm", tmp_path)
    task.compile_loss("eager")
    with pytest.raises(AuroraError, match=r"train\.compile: .* cannot be compiled whole .*; leave it out"):
        task(**task.collate(rows))


def test_pictures_with_other_numbers_of_features_take_the_same_graph(tmp_path, fresh):
    """A tower's features are in their seats among the words before the graph begins."""
    writers.skip_if_old()
    task, rows = make_task("qwen2_vl", tmp_path)
    task.compile_loss("eager")
    larger = [*rows[:2], rows[2] | {"pixels": rows[2]["pixels"].repeat(1, 2, 2)}]  # of the shortest question
    batches = [task.collate(rows), task.collate(larger)]
    assert len({batch["pixel_values"].shape for batch in batches}) == 2
    assert len({batch["input_ids"].shape for batch in batches}) == 1
    for batch in batches:
        task(**batch)["loss"].backward()
    assert counters["stats"]["unique_graphs"] == 1


def test_shapes_beyond_the_limit_are_not_compiled(tmp_path, fresh, monkeypatch, capsys):
    monkeypatch.setattr(base, "SHAPES", 1)
    task, rows = make_task("clip", tmp_path)
    batches = [task.collate(rows[:count]) for count in (6, 5, 4)]
    expected = [task(**batch)["loss"].item() for batch in batches]
    task.compile_loss("eager")
    batches = [task.collate(rows[:count]) for count in (6, 5, 4)]
    losses = [task(**batch)["loss"].item() for batch in batches]
    assert losses == pytest.approx(expected, rel=1e-5) and counters["stats"]["unique_graphs"] == 1
    assert capsys.readouterr().err.count("pictures of one size give fewer shapes") == 1


def test_a_run_with_it_has_the_losses_of_one_without(folder, tmp_path, fresh, monkeypatch):
    compile_loss = Task.compile_loss
    monkeypatch.setattr(Task, "compile_loss", lambda task: compile_loss(task, "eager"))
    model = families.make("clip", tmp_path / "clip")
    losses = []
    for compiles in (False, True):
        fields = [f"data={folder}", f"model={model}", "method_options.r=4", f"train.compile={compiles}"]
        fields += ["train.batch_size=6", "train.max_steps=3", "train.evaluations=1", "train.learning_rate=1e-2"]
        train(load_recipe(None, fields), tmp_path / f"run-{compiles}", progress=False)
        lines = (tmp_path / f"run-{compiles}" / "losses.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(set(losses[0])) == 3
    assert 1 <= counters["stats"]["unique_graphs"] <= 2

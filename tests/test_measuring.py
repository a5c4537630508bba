"""What a dry run measures: which parts of a batch it takes, and what it makes of them."""

from dataclasses import replace

import pytest
import torch

from aurora_petl import measuring, plan
from aurora_petl.examples import TrainingExamples
from aurora_petl.measuring import Measured, _Part, measure
from aurora_petl.recipe import load_recipe
from aurora_petl.training import prepare

MB = 10**6


def parts(each, *, reading=0.0, base=100 * MB, more=MB):
    """Steps whose pairs take so many seconds each, and so many bytes."""
    sizes = []

    def step(task, training, size, precision, optimizer):
        sizes.append(size)
        return _Part(size, reading * size, each * size, 0.5, base + more * size)

    return sizes, step


@pytest.fixture(scope="module")
def prepared(folder):
    fields = [f"data={folder}", "train.batch_size=24", "train.precision=fp32", "method_options.r=4"]
    return prepare(load_recipe(None, [*fields, "task.queue_size=0"]), check=False)


def taken(prepared, monkeypatch, step, workers=0, **train):
    monkeypatch.setattr(measuring, "_step", step)
    settings = replace(prepared.recipe.train, batch_size=64, **train)
    return measure(prepared.task, None, settings, "fp32", workers)


def test_the_whole_batch_is_taken_where_it_is_quick(prepared, monkeypatch):
    sizes, step = parts(0.01)
    found = taken(prepared, monkeypatch, step)
    assert sizes == [2, 2, 8, 32, 64, 64, 64]
    assert found == Measured(64, 64, 3, pytest.approx(0.64 + 0.5), 0.0, 164 * MB)


def test_a_part_is_scaled_up_where_the_whole_batch_is_slow(prepared, monkeypatch):
    sizes, step = parts(0.2)
    found = taken(prepared, monkeypatch, step, gradient_accumulation=3)
    assert sizes == [2, 2, 8, 8, 8][: len(sizes)] and (found.pairs, found.whole) == (8, 64)
    assert found.seconds == pytest.approx(3 * 64 * 0.2 + 0.5)  # one step of the optimizer
    assert found.memory == 164 * MB  # on the line through both sizes


def test_workers_read_while_the_device_computes(prepared, monkeypatch):
    alone = taken(prepared, monkeypatch, parts(0.01, reading=0.02)[1])
    assert (alone.seconds, alone.reading) == (pytest.approx(64 * 0.03 + 0.5), pytest.approx(64 * 0.02))
    four = taken(prepared, monkeypatch, parts(0.01, reading=0.02)[1], workers=4)
    assert (four.seconds, four.reading) == (pytest.approx(0.64 + 0.5), 0.0)
    one = taken(prepared, monkeypatch, parts(0.01, reading=0.02)[1], workers=1)
    assert (one.seconds, one.reading) == (pytest.approx(1.28 + 0.5), pytest.approx(0.64))


def test_real_steps_leave_the_weights_as_they_were(prepared):
    task, data = prepared.task, prepared.dataset.split("train")
    before = {name: weight.detach().clone() for name, weight in task.trained()}
    training = TrainingExamples(task, data, seed=0, augment=False, flip=False)
    found = measure(task, training, prepared.recipe.train, "fp32", 0)
    assert (found.pairs, found.whole) == (24, 24) and 0 < found.reading < found.seconds
    assert found.memory is None or found.memory > 100 * MB
    assert all(torch.equal(before[name], weight) for name, weight in task.trained())


def test_what_was_measured_is_said(prepared):
    train = replace(prepared.recipe.train, compile=True)
    made = plan.Plan(100, 2.0, 64, "cpu", "fp32", Measured(16, 64, 2, 1.25, 0.5, 1_234_000_000))
    assert dict(plan._estimates(made, train)) == {
        "takes": "about 2.1 min, evaluations apart",
        "memory": "about 1.2 GB at the peak of a step, of this process",
        "measured": "2 times 16 of 64 pairs, scaled up, without train.compile: 1.2 s a step, 0.5 s of it for pictures",
    }
    gpu = replace(made, device="cuda:0", measured=Measured(64, 64, 1, 0.25, 0.0, 2 * 10**9))
    told = dict(plan._estimates(gpu, replace(train, compile=False)))
    assert told["memory"].endswith("on cuda:0") and told["measured"] == "64 pairs: 0.25 s a step"
    assert "memory" not in dict(plan._estimates(replace(made, measured=Measured(64, 64, 1, 0.2, 0.0, None)), train))
    assert plan._estimates(replace(made, measured=None), train) == [("takes", "unknown: one process alone measures it")]

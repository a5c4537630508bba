"""Training, evaluation and search with the model on a device of its own, see `helpers.accelerator`: nothing stays on
the CPU by mistake, results are those of the CPU, and steps do not wait for the device."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback

from aurora_petl import train_arguments, trainer, training
from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.blip.model import empty
from aurora_petl.backbones.writer import ahead
from aurora_petl.baselines import apply_method
from aurora_petl.data import load_dataset
from aurora_petl.data.media import load_image
from aurora_petl.evaluation import rerank as engine
from aurora_petl.recipe import Recipe, load_recipe
from aurora_petl.scoring import evaluate
from aurora_petl.search.encoder import Encoder
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from aurora_petl.tasks.base import Task
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings
from aurora_petl.tasks.settings import VQASettings
from aurora_petl.tasks.vqa import VQA
from tests.adapter.tiny import blip_config
from tests.helpers import benchmarks, families, writers
from tests.helpers.accelerator import DEVICE, Accelerator, Remote
from tests.helpers.pictures import make_questions
from tests.helpers.steps import make_task

pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter:UserWarning")  # which copies nothing elsewhere
CPU = torch.device("cpu")
OPTIONS = {"r": 4, "context": "batch", "gate": "scale_shift", "init_weights": False, "scale": 0.1}
WORDS = ["a red circle on the left", "two stars", "a", "a long caption of some words and more", "green", "blue square"]
PICTURES = [
    [0, 1, 2, 3],
    [0, 0, 1, 2],
    [5, 5, 5, 5],
    [4, 3, 2, 1],
]  # of the pairs of four batches, one without negatives
ASKED = [
    ("what is it?", ["a red apple", "apple"], [0.7, 0.3]),
    ("is there a dog in the picture, or any other animal?", ["no"], [1.0]),
    ("how many?", ["2", "two keys", "a pair"], [0.5, 0.4, np.float64(0.1)]),
]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    with Accelerator() as accelerator:
        yield accelerator


# The stand-in itself


def test_the_stand_in_computes_and_refuses_what_a_gpu_refuses(accelerator):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    expected = layer(x).square().sum()
    expected.backward()
    gradient = layer.weight.grad
    layer.zero_grad()
    layer.to(DEVICE)
    assert isinstance(layer.weight, Remote) and layer.weight.device == DEVICE
    loss = layer(x.to(DEVICE)).square().sum()
    loss.backward()
    assert not accelerator.reads
    assert torch.allclose(loss.cpu(), expected) and torch.allclose(layer.weight.grad.cpu(), gradient)
    assert len(accelerator.reads) == len(accelerator.own_reads) + 2 == 2
    rows = torch.tensor([0, 2])
    for mixed in (lambda: layer(x), lambda: x.to(DEVICE)[rows], lambda: x.to(DEVICE).index_select(0, rows)):
        with pytest.raises(RuntimeError, match="mixes the accelerator with tensors on the CPU"):
            mixed()
    with pytest.raises(RuntimeError, match="numpy"):
        x.to(DEVICE).numpy()
    for waits in (
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        torch.nonzero,
        torch.unique,
        lambda t: t[t > 0],
        bool,
    ):
        before = len(accelerator.reads)
        waits(torch.ones((), device=DEVICE) if waits is bool else x.to(DEVICE))
        assert len(accelerator.reads) == before + 1, waits
    assert torch.tensor([1, 2], device=DEVICE).tolist() == [1, 2]
    with pytest.raises(AssertionError, match="float64"):
        x.double().to(DEVICE) + 1


# Training


def tiny(device: torch.device) -> Any:
    """A retrieval backbone of a few weights, adapted on ``device``."""
    torch.manual_seed(0)
    config = blip_config()
    config.text_config.vocab_size, config.text_config.max_position_embeddings = 30_524, 40
    backbone = empty(config, "tiny")
    backbone.model.to(device)
    apply_method(backbone, "aurora", OPTIONS | {"dropout": 0.1})
    return backbone


def steps(
    task: Task, batches: list[list[dict]], device: torch.device, accelerator: Accelerator | None = None
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Losses and gradients of a step of AdamW on each batch, moved as the Trainer moves it. Loss and gradients wait for
    no accelerator, neither to read from it nor to send to it."""
    optimizer = torch.optim.AdamW([weight for _, weight in task.trained()], 1e-3)
    losses, gradients = [], []
    for rows in batches:
        batch = send_to_device(task.collate(rows), device)
        waits = [] if accelerator is None else [*accelerator.reads, *accelerator.sends]
        parts = task(**batch)
        parts["loss"].backward()
        assert accelerator is None or waits == [*accelerator.reads, *accelerator.sends]
        losses.append(torch.stack(list(parts.values())).detach())
        gradients.append({name: weight.grad for name, weight in task.trained()})
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients


def compare(on_cpu: tuple, elsewhere: tuple) -> None:
    for expected, loss in zip(on_cpu[0], elsewhere[0], strict=True):
        assert torch.allclose(loss.cpu(), expected, rtol=1e-4)
    for first, other in zip(on_cpu[1], elsewhere[1], strict=True):
        for name, gradient in first.items():
            assert isinstance(other[name], Remote)
            assert torch.allclose(other[name].cpu(), gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    "settings",
    [
        {"queue_size": 6},
        {"queue_size": 64},
        {"queue_size": 8, "frames": 2},
        {"queue_size": 8, "negative_all_rank": True},
        {"queue_size": 0, "momentum": 0.0},
    ],
    ids=str,
)
def test_a_step_of_retrieval_reads_nothing_from_the_device(settings):
    tokenizer = load_backbone("blip-mini").tokenizer

    def run(device: torch.device, accelerator: Accelerator | None = None) -> tuple:
        backbone = tiny(device)
        backbone.tokenizer = tokenizer
        task = Retrieval(backbone, RetrievalSettings(**settings)).train().to(device)
        task.warmup_steps = 3
        shape = (2, 3, 16, 16) if "frames" in settings else (3, 16, 16)
        batches = [
            [
                {"pixels": torch.randn(shape), "caption": WORDS[(5 * place + len(WORDS)) % len(WORDS)], "id": number}
                for place, number in enumerate(numbers)
            ]
            for numbers in PICTURES
        ]
        found = steps(task, batches, device, accelerator)
        return (*found, {name: value.cpu() for name, value in task.training_state().items()})

    expected = run(CPU)
    with Accelerator() as accelerator:
        found = run(DEVICE, accelerator)
        compare(expected, found)
    reads = [read for read in accelerator.own_reads if not read.startswith("tasks/base")]
    assert not reads
    assert found[2]["_contrast.next_row"] == expected[2]["_contrast.next_row"] and found[2]["steps"] == len(PICTURES)
    assert torch.allclose(found[2]["_contrast.image"], expected[2]["_contrast.image"], atol=1e-4)


def test_a_step_of_vqa_reads_nothing_from_the_device():
    backbones = {device: load_backbone("blip-mini", task="vqa") for device in (CPU, DEVICE)}

    def run(device: torch.device, accelerator: Accelerator | None = None) -> tuple:
        backbone = backbones[device]
        torch.manual_seed(0)
        apply_method(backbone, "aurora", OPTIONS)
        task = VQA(backbone).train().to(device)
        names = ("question", "answers", "weights")
        rows = [{"pixels": torch.randn(3, 96, 96), **dict(zip(names, row, strict=True))} for row in ASKED]
        return steps(task, [rows, rows], device, accelerator)

    expected = run(CPU)
    with Accelerator() as accelerator:
        found = run(DEVICE, accelerator)
        assert not accelerator.own_reads
        compare(expected, found)


@pytest.mark.parametrize("kind", [*families.DUAL, *families.MATCHERS])
def test_a_step_of_other_families_waits_for_nothing(kind, tmp_path):
    """Nor do transformers' parts in it."""
    backbone = load_backbone(str(families.make(kind, tmp_path / kind)))
    apply_method(backbone, "aurora", {"r": 4, "init_weights": False, "scale": 0.1})
    task = Retrieval(backbone, RetrievalSettings()).train()
    view, sizes = backbone.view(), [(40, 56), (64, 30), (50, 50), (20, 90), (40, 40), (33, 44)]
    rows = [
        {"pixels": view(Image.new("RGB", size, "red")), "caption": words, "id": number}
        for number, (size, words) in enumerate(zip(sizes, WORDS, strict=True))
    ]
    with Accelerator() as accelerator:
        task.to(DEVICE)
        batch = send_to_device(task.collate(rows), DEVICE)
        for _ in range(2):
            accelerator.reads.clear()
            accelerator.sends.clear()
            task(**batch)["loss"].backward()
            assert not accelerator.reads and not accelerator.sends
        assert all(weight.grad is not None for _, weight in task.trained())


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_a_step_of_qwen_waits_for_no_layer_and_no_answer(kind, tmp_path):
    """What its towers ask of pictures' grids is computed before; three questions of transformers are left, two of the
    padding and one of the number of features."""
    writers.skip_if_old()
    if not ahead.TAKEN:
        pytest.skip("transformers takes nothing that was computed before")
    task, rows = make_task(kind, tmp_path)
    with Accelerator() as accelerator:
        task.to(DEVICE)
        batch = send_to_device(task.collate(rows), DEVICE)
        accelerator.reads.clear()
        accelerator.sends.clear()
        task(**batch)["loss"].backward()
        assert len(accelerator.reads) <= 3 and not accelerator.own_reads and not accelerator.sends
    assert all(weight.grad is not None for _, weight in task.trained())


def test_a_batch_holds_nothing_that_mps_lacks():
    task = VQA(load_backbone("blip-mini", task="vqa"))
    rows = [{"pixels": torch.zeros(3, 96, 96), "question": q, "answers": a, "weights": w} for q, a, w in ASKED]
    batch = task.collate(rows)
    assert not any(value.dtype == torch.float64 for value in batch.values() if isinstance(value, Tensor))
    assert not any(value.dtype == torch.float64 for value in Retrieval(tiny(CPU)).state_dict().values())


class Break(TrainerCallback):
    """Ends the process, as it were, in the third step."""

    def on_step_begin(self, args, state, control, **rest) -> None:
        if state.global_step == 2:
            raise InterruptedError


@pytest.fixture
def chosen(monkeypatch) -> Iterator[None]:
    """Runs take the stand-in, and with them the Trainer and accelerate."""
    make = trainer.training_arguments

    def arguments(*args):
        made = make(*args)
        made.optim = "adamw_torch"  # there is no fused one
        made.__dict__["_setup_devices"] = PartialState._shared_state["device"] = DEVICE
        return made

    monkeypatch.setattr(trainer, "training_arguments", arguments)
    for module in (training, train_arguments):
        monkeypatch.setattr(module, "choose", lambda: DEVICE)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_whole_run_is_trained_resumed_and_scored_elsewhere(folder, tmp_path, request):
    def recipe() -> Recipe:
        small = ["batch_size=6", "max_steps=4", "evaluations=2", "workers=0", "learning_rate=3e-3", "precision=fp32"]
        more = [f"train.{setting}" for setting in small]
        return load_recipe(None, [f"data={folder}", "method=aurora", "task.queue_size=6", "method_options.r=4", *more])

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name / "losses.jsonl").read_text().splitlines()]

    expected = training.train(recipe(), tmp_path / "cpu", progress=False).metrics["test"]
    request.getfixturevalue("chosen")
    with Accelerator() as accelerator:
        with pytest.raises(InterruptedError):
            training.train(recipe(), tmp_path / "device", progress=False, callbacks=[Break()])
        run = training.train(recipe(), tmp_path / "device", resume=True, progress=False)
        assert all(isinstance(weight, Remote) for weight in run.task.parameters())
        metrics = [evaluate([tmp_path / "device"])[0].metrics for _ in range(2)]  # the second from its cache
    assert losses("device") == pytest.approx(losses("cpu"), rel=1e-4)
    assert run.metrics["test"] == metrics[0] == metrics[1] == pytest.approx(expected)
    assert not any(read.startswith(("tasks/objectives", "tasks/retrieval")) for read in accelerator.own_reads)


# Evaluation


def tuned(device: torch.device, task: str = "retrieval"):
    backbone = load_backbone("blip-mini", task=task)
    torch.manual_seed(0)
    apply_method(backbone, "aurora", OPTIONS)
    for name, bank in backbone.module.named_buffers():
        if "bank" in name:
            bank.normal_()
    backbone.module.to(device)
    return backbone


@pytest.mark.parametrize("kind", ["pictures", "clips"])
def test_a_split_is_scored_as_on_the_cpu(kind, pictures, tmp_path, monkeypatch):
    """The device is waited for a number of times that does not grow with the split; what is cached is read back."""
    monkeypatch.setattr(engine, "CALL_TOKENS", 20)  # many calls of the model
    few = pictures if kind == "pictures" else load_dataset("msrvtt", benchmarks.msrvtt(tmp_path / "data", frames=True))
    few = few.split("validation" if kind == "pictures" else "test")
    settings = RetrievalSettings(k_test=3, queue_size=0, beta=0.3, frames=2)
    expected = Retrieval(tuned(CPU), settings).evaluate(few, rescore=2).scores
    with Accelerator() as accelerator:
        task = Retrieval(tuned(DEVICE), settings)
        accelerator.reads.clear()
        scores = task.evaluate(few, rescore=2).scores
        places = {"evaluation/rerank.py", "evaluation/scores.py"}
        assert {read.split(":")[0] for read in accelerator.own_reads} == places
        assert len(accelerator.own_reads) <= 6, accelerator.own_reads
        first, again = (task.evaluate(few, cache=tmp_path / "cache").scores for _ in range(2))
        for matrix in ("image_to_text", "text_to_image", "similarity"):  # which are formed from features on the device
            assert np.allclose(getattr(scores, matrix), getattr(expected, matrix), atol=1e-4)
            assert np.array_equal(getattr(first, matrix), getattr(again, matrix))
            assert np.allclose(getattr(first, matrix), getattr(expected, matrix), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"inference": "rank", "k_test": 4}, {"inference": "generate"}, {"inference": "generate", "num_beams": 2}],
)
def test_questions_are_answered_as_on_the_cpu(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("aurora_petl.backbones.blip.answering.PAIRS", 5)
    split = make_questions(tmp_path / "questions").split("test")
    expected = VQA(tuned(CPU, "vqa"), VQASettings(**settings)).evaluate(split)
    with Accelerator() as accelerator:
        task = VQA(tuned(DEVICE, "vqa"), VQASettings(**settings))
        accelerator.reads.clear()
        found = task.evaluate(split)
        assert (found.answers, found.scores) == (expected.answers, expected.scores)
        assert len(accelerator.own_reads) <= 2  # of a batch of questions


# Search


def test_an_index_is_made_and_searched_as_on_the_cpu(folder, tmp_path, monkeypatch):
    def work(name: str) -> list:
        build_index(folder, tmp_path / name, "blip-mini", progress=False)
        searcher = Searcher(Library(tmp_path / name))
        picture = load_image(searcher.library.path(3))
        features = searcher.library.picture_features(searcher.view)
        found = [
            searcher.search("a red circle", 5),
            searcher.search("a red circle", 3, rerank=6),
            searcher.search(picture, 5),
            searcher.search(picture, 3, texts=True, rerank=6),
        ]
        return [features, *found]

    expected, make = work("cpu"), Encoder.__init__

    def made(encoder: Encoder, *args, **rest) -> None:
        make(encoder, *args, **rest)
        encoder.backbone.module.to(DEVICE)
        encoder.device = DEVICE

    monkeypatch.setattr(Encoder, "__init__", made)
    with Accelerator() as accelerator:
        features, *found = work("device")
    assert accelerator.own_reads and torch.allclose(features.float(), expected[0].float(), atol=1e-3)
    for ours, theirs in zip(found, expected[1:], strict=True):
        assert [hit.what for hit in ours] == [hit.what for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-3)

"""Two processes with half a batch each against one process with all of it."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from aurora_petl.backbones.blip.model import empty
from aurora_petl.baselines import apply_method
from aurora_petl.distributed import gather
from aurora_petl.tasks.objectives import matching
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings
from tests.adapter.tiny import blip_config
from tests.helpers.duals import dual_batch, tiny_dual
from tests.helpers.ranks import run_ranks
from tests.helpers.short_runs import free_port

RANKS = 2
KINDS = ("own rank", "all ranks", "clip", "siglip", "own rank, chunks", "all ranks, chunks", "clip, chunks")
IDS = torch.tensor([0, 1, 0, 2])  # a picture that both ranks show


def draw(weights: torch.Tensor) -> torch.Tensor:
    """In place of a random draw: the likeliest negative of the same rank."""
    own = torch.arange(len(weights)) // (len(IDS) // RANKS)
    return (weights * (own[:, None] == own)).argmax(1)


def likeliest(weights: torch.Tensor) -> torch.Tensor:
    """The likeliest negative of all ranks."""
    return weights.argmax(1)


def step(rows: slice, kind: str) -> tuple[Retrieval, float]:
    """Loss and gradients of the second step on these rows: with BLIP, features are in the queue and soften the
    targets."""
    kind, *by_chunks = kind.split(", ")
    chunk_size = 1 if by_chunks else 0
    if kind in ("clip", "siglip"):
        task = Retrieval(tiny_dual(kind), RetrievalSettings(chunk_size=chunk_size)).train()
        batch = dual_batch(4)
    else:
        task, batch = blip(kind == "all ranks", chunk_size)
    part = {name: value[rows] for name, value in {**batch, "ids": IDS}.items()}
    task(**part)
    loss = task(**part)["loss"]
    loss.backward()
    return task, loss.item()


def blip(all_rank: bool, chunk_size: int) -> tuple[Retrieval, dict[str, torch.Tensor]]:
    matching.draw = likeliest if all_rank else draw
    torch.manual_seed(0)
    config = blip_config()
    config.text_config.vocab_size = 30_524
    backbone = empty(config, "tiny")
    apply_method(
        backbone, "aurora", {"r": 4, "context": "batch", "gate": "scale_shift", "init_weights": False}, train_heads=True
    )
    task = Retrieval(
        backbone, RetrievalSettings(queue_size=8, negative_all_rank=all_rank, chunk_size=chunk_size)
    ).train()
    task.warmup_steps = 1
    ids = torch.randint(3, 50, (4, 5))
    return task, {"pixel_values": torch.randn(4, 3, 16, 16), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def found(task: Retrieval, loss: float) -> dict[str, torch.Tensor]:
    gradients = {f"gradient of {name}": weight.grad for name, weight in task.trained()}
    held = ("queue", "bank", "_contrast")
    kept = {name: value for name, value in task.training_state().items() if any(part in name for part in held)}
    return {"loss": torch.tensor(loss), **gradients, **kept}


def work(rank: int, folder: str) -> None:
    half = len(IDS) // RANKS
    for kind in KINDS:
        values = found(*step(slice(rank * half, (rank + 1) * half), kind))
        for name, value in values.items():
            if name == "loss" or name.startswith("gradient"):  # as DDP does
                dist.all_reduce(value)
                value /= RANKS
        torch.save(values, f"{folder}/{kind} {rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A folder of what each of two ranks found for every kind."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, str(folder), ranks=RANKS)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_with_the_joint_batch(ranks, monkeypatch, kind):
    monkeypatch.setattr(matching, "draw", matching.draw)  # `step` replaces it
    kind, *by_chunks = kind.split(", ")
    expected = found(*step(slice(None), kind))
    parts = ("logit_scale",) if kind in ("clip", "siglip") else ("eta", "bank", "_contrast.image")
    assert all(any(part in name and value.any() for name, value in expected.items()) for part in parts)
    assert all(value.any() for name, value in expected.items() if "eta" in name or "gamma" in name or "bank" in name)
    for rank in range(RANKS):
        values = torch.load(ranks / f"{', '.join([kind, *by_chunks])} {rank}.pt")
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(values[name], value, rtol=1e-4, atol=1e-6), (rank, name)


@pytest.mark.parametrize("rows", [torch.ones(2, 3, requires_grad=True), torch.arange(3)])
def test_alone_nothing_is_gathered(rows):
    assert gather(rows) is rows


LEAVING = """
import atexit
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from aurora_petl import distributed

def tell():
    print("threads:", *(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))

atexit.register(tell)  # the last that is registered goes first
distributed.start()
model = DistributedDataParallel(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
model.cycle = [model]
del model
tell()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted by what Linux tells of them")
def test_no_thread_of_the_process_group_outlives_the_interpreter():
    """One that wants the interpreter's lock while it ends kills the process, after all its work."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVING],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    for process in ranks:
        before, after = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == 0 and "gloo" in before and "gloo" not in after

"""Which examples are seen in which view, by one process and by several."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from aurora_petl.examples import Order
from tests.helpers.short_runs import free_port

SPY = """
import hashlib, json, os, sys
from aurora_petl.cli import main
from aurora_petl.examples import TrainingExamples
look = TrainingExamples.__getitem__
def spy(self, place):
    seen = look(self, place)
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps([*place, hashlib.sha256(seen["pixels"].numpy().tobytes()).hexdigest()]) + "\\n")
    return seen
TrainingExamples.__getitem__ = spy
sys.exit(main(sys.argv[2:]))
"""


def batches(examples: int, batch: int, steps: int, ranks: int = 1, rank: int = 0, seed: int = 0):
    sampler = BatchSampler(Order(examples, batch * ranks, steps * batch * ranks, seed), batch, drop_last=True)
    return list(BatchSamplerShard(sampler, ranks, rank))


@pytest.mark.parametrize("examples", [12, 13, 17])
def test_every_epoch_shows_every_example_once_in_an_order_of_its_own(examples):
    places = list(itertools.chain(*batches(examples, 4, 9)))
    orders = [[index for at, index in places if at == epoch] for epoch in sorted({epoch for epoch, _ in places})]
    assert places == sorted(places, key=lambda place: place[0])
    whole = examples // 4 * 4
    assert all(len(set(order)) == len(order) == whole for order in orders[:-1])
    assert len({tuple(order) for order in orders}) == len(orders) and sum(map(len, orders)) == 36
    # the order of transformers' own sampler: a permutation by seed and epoch
    expected = torch.randperm(examples, generator=torch.Generator().manual_seed(0 + 1))[:whole].tolist()
    assert orders[1] == expected


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_batches_together_are_those_of_one_process(ranks):
    one = batches(25, 2 * ranks, 10, seed=7)
    several = [batches(25, 2, 10, ranks, rank, seed=7) for rank in range(ranks)]
    assert [list(itertools.chain(*parts)) for parts in zip(*several, strict=True)] == one


def test_views_of_two_ranks_are_those_of_one_process_and_differ_between_epochs(folder, tmp_path):
    """Four epochs; 24 pairs train, in batches of 8 pairs all ranks together."""
    fields = [
        f"data={folder}",
        "method_options.r=2",
        "task.queue_size=0",
        "train.precision=fp32",
        "train.evaluations=1",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for ranks, rank in ((1, 0), (2, 0), (2, 1)):
        words = [
            *fields,
            f"train.batch_size={8 // ranks}",
            "train.max_steps=12",
            "train.augment=true",
            "--quiet",
            "--out",
            f"run{ranks}",
        ]
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        command = [sys.executable, "-c", SPY, f"seen{ranks}.{rank}", "train", *words]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment | place))
    assert [process.wait(400) for process in running] == [0, 0, 0]

    def seen(name: str) -> list[tuple[int, int, str]]:
        return [tuple(json.loads(line)) for line in (tmp_path / name).read_text().splitlines()]

    one, two = seen("seen1.0"), seen("seen2.0") + seen("seen2.1")
    assert len(one) == len(two) == 4 * 24 and len(seen("seen2.0")) == 4 * 12
    assert sorted(one) == sorted(two)
    views = {}
    for epoch, index, digest in one:
        views.setdefault(index, {})[epoch] = digest
    assert len(views) == 24 and all(len(set(by_epoch.values())) == 4 for by_epoch in views.values())
    # contrast is that of the joint batch: what it costs is the same
    losses = [
        [json.loads(line)["itc"] for line in (tmp_path / f"run{ranks}/losses.jsonl").read_text().splitlines()]
        for ranks in (1, 2)
    ]
    assert len(losses[0]) == 12 and losses[1][0] == pytest.approx(losses[0][0], rel=1e-4)

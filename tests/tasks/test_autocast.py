"""A training step under CUDA's autocast, which computes in float32 what the CPU's leaves in bfloat16."""

import pytest
import torch

from aurora_petl.backbones.blip import crossing
from tests.helpers import families
from tests.helpers.cuda_autocast import CudaAutocast
from tests.helpers.steps import make_task

BLIP = {  # settings of retrieval; two pairs leave no choice of negatives
    "pictures": {},
    "one picture": {},
    "clips": {"frames": 2},
    "clips whose frames weigh alike": {"frames": 2, "frame_attention": False},
    "no momentum": {"momentum": 0.0, "queue_size": 0, "alpha": 0.0},
}


def gradients(task, batch, *, autocast: bool):
    torch.manual_seed(0)
    task.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = task(**batch)["loss"]
    loss.backward()
    return loss.detach(), torch.cat([w.grad.flatten() for _, w in task.trained() if w.grad is not None])


def compare(task, batch, base=torch.float32) -> None:
    """A step in float32 and one under autocast, of frozen weights in the dtype ``base``."""
    start = {name: value.clone() for name, value in task.training_state().items()}
    expected, wanted = gradients(task, batch, autocast=False)
    task.load_training_state(start)
    for weight in task.model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(base)
    with CudaAutocast() as cuda:
        loss, found = gradients(task, batch, autocast=True)
    assert cuda.widened
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=0.05)
    assert torch.cosine_similarity(found, wanted, 0) > 0.98


@pytest.mark.parametrize(("case", "base"), [*((case, torch.float32) for case in BLIP), ("pictures", torch.bfloat16)])
def test_of_blip(case, base, tmp_path, monkeypatch):
    ways = []
    for way in (crossing._Absorbed, crossing._Crossing):
        monkeypatch.setattr(way, "forward", lambda *args, w=way, f=way.forward: ways.append(w) or f(*args))
    task, rows = make_task("blip", tmp_path, width=64, **BLIP[case])
    rows = [row | {"id": 0} if case == "one picture" else row for row in rows[:2]]
    compare(task, task.collate(rows), base)
    if case == "pictures":  # the first layer one way, the last, of which [CLS] alone is wanted, the other
        assert set(ways) == {crossing._Absorbed, crossing._Crossing}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("blip-vqa", "clip", "siglip") else pytest.mark.slow)
        for kind in ("blip-vqa", *families.DUAL, *families.MATCHERS)
    ],
)
def test_of_other_families(kind, tmp_path):
    task, rows = make_task(kind, tmp_path)
    compare(task, task.collate(rows))

"""FSDP1 and FSDP2 on two ranks, each with half a batch, against one process with all of it."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp import StateDictType as Kind
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, lambda_auto_wrap_policy
from transformers import BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip import BlipEncoderLayer
from transformers.models.blip.modeling_blip_text import BlipTextLayer

from aurora_petl.adapter import AuroraConfig
from tests.helpers.ranks import run_ranks

from .tiny import SPLIT, Net, aurora_config, blip_config

RANKS = 2
RATE = 0.1


class Stack(nn.Module):
    """Two `Net`s, so that factors which lie at the root serve layers of several units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.widen, self.second = Net(), nn.Linear(3, 8), Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.widen(self.first(x)))


def stack() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(Stack(), aurora_config(modules_to_save=["widen"], **SPLIT)).train()


def blip() -> PeftModel:
    torch.manual_seed(0)
    config = AuroraConfig(r=4, core="full", context="batch", gate="scale_shift", init_weights=False)
    model = get_peft_model(BlipForImageTextRetrieval(blip_config()), config)
    model.text_encoder.encoder.context.aurora_bank["default"].normal_()
    return model.train()


def loss_of(name: str, model: nn.Module, rows: slice) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if name == "stack":
        return model(torch.randn(4, 5, 8, generator=draw)[rows]).square().mean()
    pixels, ids = torch.randn(4, 3, 16, 16, generator=draw), torch.randint(3, 50, (4, 5), generator=draw)
    return model(pixel_values=pixels[rows], input_ids=ids[rows]).itm_score.square().mean()


def fsdp1(model: PeftModel) -> nn.Module:
    units = ModuleWrapPolicy({Net, BlipTextLayer, BlipEncoderLayer})
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=True, auto_wrap_policy=units)


def fsdp1_flat(model: PeftModel) -> nn.Module:
    """FSDP1's default, one flat parameter a unit, wants what is frozen apart from what is trained."""

    def frozen_leaf(module: nn.Module) -> bool:
        return type(module) is nn.Linear

    policy = functools.partial(lambda_auto_wrap_policy, lambda_fn=frozen_leaf)
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), auto_wrap_policy=policy)


def fsdp2(model: PeftModel) -> nn.Module:
    mesh = init_device_mesh("cpu", (RANKS,))
    for module in model.modules():
        if isinstance(module, (Net, BlipTextLayer, BlipEncoderLayer)):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


MODELS = {"stack": stack, "blip": blip}
WAYS = {"fsdp1": fsdp1, "fsdp1_flat": fsdp1_flat, "fsdp2": fsdp2}
CASES = [("stack", "fsdp1"), ("stack", "fsdp1_flat"), ("stack", "fsdp2"), ("blip", "fsdp1"), ("blip", "fsdp2")]


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.state_dict_type(model, Kind.FULL_STATE_DICT):
            return model.state_dict()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def work(rank: int, folder: str) -> None:
    """A step of plain gradient descent in every case; the adapter after it as peft saves it."""
    for name, way in CASES:
        bare = MODELS[name]()
        model = WAYS[way](bare)
        loss = loss_of(name, model, slice(2 * rank, 2 * rank + 2))
        loss.backward()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        torch.optim.SGD(trained, lr=RATE, foreach=False).step()
        after = loss_of(name, model, slice(2 * rank, 2 * rank + 2)).detach()
        loss = loss.detach()
        dist.all_reduce(loss)
        dist.all_reduce(after)
        state = get_peft_model_state_dict(bare, state_dict=whole_state(model), save_embedding_layers=False)
        if rank == 0:
            torch.save((loss / RANKS, after / RANKS, state), f"{folder}/{name}_{way}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, str(folder), ranks=RANKS)
    return folder


@pytest.mark.parametrize(("name", "way"), CASES)
def test_equals_one_process(folder, name, way):
    model = MODELS[name]()
    start = copy.deepcopy(get_peft_model_state_dict(model, save_embedding_layers=False))
    loss = loss_of(name, model, slice(None))
    loss.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad.any() for weight in trained)
    torch.optim.SGD(trained, lr=RATE).step()
    stepped = get_peft_model_state_dict(model, save_embedding_layers=False)
    after = loss_of(name, model, slice(None))

    their_loss, their_after, state = torch.load(folder / f"{name}_{way}.pt")
    assert torch.allclose(their_loss, loss, rtol=1e-5) and torch.allclose(their_after, after, rtol=1e-4)
    assert state.keys() == stepped.keys()
    for key, weight in stepped.items():  # the step is the gradient, and the file what was trained
        assert torch.allclose(state[key] - start[key], weight - start[key], rtol=1e-3, atol=1e-6), key

    fresh = MODELS[name]()
    result = set_peft_model_state_dict(fresh, state)
    assert not result.unexpected_keys
    assert torch.allclose(loss_of(name, fresh, slice(None)), after, rtol=1e-4)

"""Updates formed for all layers at once, against layers that form their own; and what makes them be formed anew."""

import copy
import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from aurora_petl.adapter import updates
from aurora_petl.adapter.together import project
from aurora_petl.adapter.updates import Block

from .tiny import Net, aurora_config

X, OTHER = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(5))


def adapted(**fields):
    torch.manual_seed(0)
    return get_peft_model(Net(), aurora_config(**fields))


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model):
    found = {name: weight.grad for name, weight in trained(model).items()}
    model.zero_grad()
    return found


def plain(monkeypatch, run):
    """What `run` makes of layers that form their own updates."""
    with monkeypatch.context() as patched:
        patched.setattr(updates, "LIMIT", -1)
        return run(adapted())


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.fixture
def blocks(monkeypatch):
    """What is formed."""
    seen, init = [], Block.__init__

    def formed(self, *args):
        seen.append(args[1])
        init(self, *args)

    monkeypatch.setattr(Block, "__init__", formed)
    return seen


def one_pass(model):
    model(X).square().sum().backward()
    return gradients(model)


def accumulated(model):
    for x in (X, OTHER):
        model(x).square().sum().backward()
    return gradients(model)


def passes_with_one_backward(model):
    first = model(X)
    with torch.no_grad():
        model(OTHER)
    (first.square().sum() + model(OTHER).square().sum()).backward()
    return gradients(model)


def one_pass_with_two_backwards(model):
    y = model(X)
    y.square().sum().backward(retain_graph=True)
    y.exp().sum().backward()
    return gradients(model)


def a_layer_by_itself(model):
    model(X).sum().backward()
    model.zero_grad(set_to_none=False)
    model.base_model.model.up(X).square().sum().backward()
    return gradients(model)


def checkpointed(model, reentrant):
    x = X.clone().requires_grad_()
    sum(checkpoint(model, part, use_reentrant=reentrant).square().sum() for part in x.split(2)).backward()
    return gradients(model)


RUNS = [one_pass, accumulated, passes_with_one_backward, one_pass_with_two_backwards, a_layer_by_itself]
RUNS += [lambda model: checkpointed(model, True), lambda model: checkpointed(model, False)]


@pytest.mark.parametrize("run", RUNS)
def test_gradients_equal_those_of_layers_by_themselves(monkeypatch, run):
    expected, model = plain(monkeypatch, run), adapted()
    for _ in range(2):  # when a layer comes first, and when all are known
        assert_close(run(model), expected)
    assert_close(run(copy.deepcopy(model)), expected)


def test_formed_once_for_each_set_of_weights(blocks):
    model = adapted()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.1, fused=True)  # changes weights unseen by autograd
    for steps in range(1, 3):
        with torch.no_grad():
            model(X)
        accumulated(model)
        checkpointed(model, False)
        model(X).sum().backward()
        assert len(blocks) == 3 * steps  # of the widths (8, 8), (8, 12) and (12, 8)
        optimizer.step()
        optimizer.zero_grad()


def in_place(weight):
    with torch.no_grad():
        weight.mul_(1.5)


def by_data_in_place(weight):
    weight.data.mul_(1.5)


def other_data(weight):
    weight.data = weight.data * 1.5


@pytest.mark.parametrize("change", [in_place, by_data_in_place, other_data])
@pytest.mark.parametrize("grad", [True, False])
def test_changes_by_hand_count(change, grad):
    model = adapted()
    with torch.set_grad_enabled(grad):
        model(X)
        for part in (
            ".U_8",
            ".V_12",
            ".lambda_",
            "up.aurora_P",
            "qkv.aurora_P",
            *((".up.base_layer.weight",) * (change is not by_data_in_place)),
        ):
            (weight,) = (weight for name, weight in model.named_parameters() if part in name)
            before = model(X)
            change(weight)
            after = model(X)
            assert not torch.equal(after, before), part
            assert torch.equal(after, copy.deepcopy(model)(X)), part


def test_other_weights_count():
    """Loaded, moved to other dtypes and back, merged and taken out again, a layer exchanged."""
    model, other = adapted(), adapted()
    with torch.no_grad():
        for weight in trained(other).values():
            weight.mul_(1.5)
        first, expected = model(X), other(X)
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(X), expected)
        model.double()
        assert torch.allclose(model(X.double()).float(), expected, atol=1e-5)
        model.float()
        model.merge_adapter()
        model.unmerge_adapter()
        assert torch.allclose(model(X), expected, atol=1e-5)
        up = model.base_model.model.up
        up.base_layer = copy.deepcopy(up.base_layer)
        up.base_layer.weight.zero_()
        assert torch.equal(model(X), copy.deepcopy(model)(X))
    assert not torch.equal(first, expected)


def test_where_values_cannot_be_looked_at_each_pass_forms_anew(blocks):
    model = adapted().to("meta")
    x = X.to("meta")
    for passes in range(1, 3):
        model(x).sum().backward()
        assert len(blocks) == 3 * passes
    blocks.clear()
    model.requires_grad_(False)  # nobody trains it
    for _ in range(2):
        model(x)
    assert len(blocks) == 3


def test_what_nobody_asks_for_is_not_formed_again(monkeypatch):
    model = adapted()
    model(X)
    kept, qkv = model.base_model.aurora_factors.updates, model.base_model.model.qkv
    whole = len(kept.tensors())
    for _ in range(updates.BLOCKS + 2):
        with torch.no_grad():
            trained(model)["base_model.model.aurora_factors.default.U_8"].mul_(1.1)
        qkv(X)
    assert 0 < len(kept.tensors()) < whole
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    found = model(X)
    monkeypatch.setattr(updates, "LIMIT", -1)
    alone = adapted()
    alone.load_state_dict(changed)
    assert torch.allclose(found, alone(X), rtol=1e-5, atol=1e-6)


def test_a_change_between_forward_and_backward_raises():
    model = adapted()
    y = model(X)
    in_place(model.base_model.aurora_factors["default"].V_8)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_copies_of_weights_have_a_limit(monkeypatch):
    """Of one adapter at a time; beyond it layers form their own."""

    def copies(model):
        made = [unit.formed.stack for unit in model.base_model.aurora_factors.updates._units.values() if unit.formed]
        return sum(stack.numel() for stack in made if stack is not None)

    model = adapted()
    model.add_adapter("other", aurora_config())
    model(X)
    whole = copies(model)
    assert whole >= 8 * (24 + 12 + 8) + 12 * 8
    model.set_adapter("other")
    model(X)
    assert copies(model) == whole
    model.set_adapter("default")
    limited = adapted()
    monkeypatch.setattr(updates, "LIMIT", 4 * 8 * 24)  # of qkv alone
    assert_close({"y": limited(X)}, {"y": model(X)})
    assert 8 * 24 <= copies(limited) < 8 * 32


def test_nothing_outlives_the_model():
    model = adapted()
    model(X).sum().backward()
    unit, *_ = model.base_model.aurora_factors.updates._units.values()
    copy_of_weights = weakref.ref(unit.formed)
    del model, unit
    gc.collect()
    assert copy_of_weights() is None


class Branch(nn.Module):
    """A part of whose layers a step may leave out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, both=True):
        x = self.first(x)
        return self.second(torch.tanh(x)) if both else x


def test_distributed_data_parallel(tmp_path):
    """Accumulation without a sync, and layers that have no part in a step."""

    def run(wrap):
        torch.manual_seed(0)
        bare = get_peft_model(Branch(), aurora_config(target_modules=["first", "second"]))
        model = wrap(bare)
        with model.no_sync() if wrap is not nn.Identity and hasattr(model, "no_sync") else torch.enable_grad():
            model(X).square().sum().backward()
        model(OTHER, both=False).square().sum().backward()
        return gradients(bare)

    expected = run(lambda model: model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert_close(run(lambda model: DistributedDataParallel(model, find_unused_parameters=True)), expected)
    finally:
        dist.destroy_process_group()


class Attention(nn.Module):
    """Three layers that read the same x, in bfloat16."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(3))

    def forward(self, x):
        return torch.cat(project(x.bfloat16(), self.query, self.key, self.value), -1)


def stack_of(model):
    """Where the frozen weights above U^T lie."""
    (place,) = {
        part.untyped_storage().data_ptr() for part in updates_of(model).tensors() if part.shape == (3 * 8 + 4, 8)
    }
    return place


def updates_of(model):
    return model.base_model.aurora_factors.updates


def attention():
    torch.manual_seed(0)
    model = get_peft_model(Attention(), aurora_config(target_modules=["query", "key", "value"]))
    return model.train()


def halved(model):
    for weight in trained(model).values():
        weight.data = weight.data / 2


def test_frozen_weights_stay_in_memory_while_steps_change_the_update():
    model = attention()
    optimizer = torch.optim.SGD(trained(model).values(), lr=1e-3)
    places = []
    for _ in range(3):
        model(X).square().sum().backward()
        places.append(stack_of(model))
        optimizer.step()
        optimizer.zero_grad()
    assert len({*places}) == 1
    again, used = model(X).detach(), stack_of(model)
    assert used == places[0]
    updates_of(model).forget()
    assert torch.equal(model(X), again)


def test_a_pass_that_waits_for_its_backward_keeps_its_weights():
    model = attention()
    expected = one_pass(model)
    y, before = model(X), stack_of(model)
    own = {name: weight.data for name, weight in trained(model).items()}
    halved(model)  # as averages are put in the place of weights
    with torch.no_grad():
        model(X)
    assert stack_of(model) != before
    for name, weight in trained(model).items():
        weight.data = own[name]
    y.square().sum().backward()
    found = gradients(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_frozen_weights_that_change_are_read_anew():
    model = attention()
    one_pass(model)
    with torch.no_grad():
        model.base_model.model.key.base_layer.weight.mul_(2)
    halved(model)
    found = model(X).detach()
    updates_of(model).forget()
    assert torch.equal(found, model(X))

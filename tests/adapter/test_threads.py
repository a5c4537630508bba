"""Several threads on one model compute what one thread does, though they meet in every text layer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import get_peft_model

from aurora_petl.adapter import AuroraConfig
from aurora_petl.adapter.additions import PASS
from aurora_petl.backbones.blip import fusion
from aurora_petl.backbones.blip.attention import use_sdpa
from tests.helpers.blip_fusion import adapted, fused, same_blip, shaken

from .tiny import Net, aurora_config

THREADS = 4
DRAW = torch.Generator().manual_seed(11)
TEXTS = torch.randint(3, 50, (THREADS, 3, 6), generator=DRAW)
PICTURES = torch.randn(THREADS, 3, 5, 16, generator=DRAW)


def together(meeting_points, run):
    """`run(i)` of every thread i; all threads stand at each of these modules before one goes on."""
    barrier = threading.Barrier(THREADS, timeout=20)

    def meet(*_):
        barrier.wait()

    handles = [module.register_forward_pre_hook(meet) for module in meeting_points]
    with ThreadPoolExecutor(THREADS) as pool:
        results = [future.result() for future in [pool.submit(run, i) for i in range(THREADS)]]
    for handle in handles:
        handle.remove()
    return results


def between_hooks(model):
    """Modules that run after cross-attention and before the output of their layer."""
    return [layer.intermediate for layer in model.text_encoder.encoder.layer]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to rounding: PyTorch may share a product among other numbers of its own threads."""
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("sdpa", [False, True], ids=["stock", "sdpa"])
def test_gates_and_context(sdpa, chunk):
    base = same_blip()
    assert not sdpa or use_sdpa(base)
    model = adapted(base)
    for layer in model.text_encoder.encoder.layer:
        layer.chunk_size_feed_forward = chunk

    @torch.no_grad()
    def run(i):
        return fused(model, TEXTS[i], PICTURES[i])

    alone = [run(i) for i in range(THREADS)]
    assert all(map(close, together(between_hooks(model), run), alone))
    assert fusion.PASS.gate is None


def test_threads_that_read_the_same_pictures_with_gradients():
    """Layers leave notes on the pictures' states; whoever reads them gets what it would have formed itself."""
    base = same_blip()
    assert use_sdpa(base)
    model = adapted(base, init_weights=False)
    states = PICTURES[0].clone().requires_grad_()

    def run(i):
        return fused(model, TEXTS[i], states).detach()

    alone = [run(i) for i in range(THREADS)]
    assert all(map(close, together(between_hooks(model), run), alone))


def test_mixed_batches_beside_plain_ones():
    model = adapted(init_weights=False)
    model.add_adapter("other", AuroraConfig(r=2, gate="released", init_weights=False))
    shaken(model, "other")
    names = [None, ["default", "other", "__base__"], ["other", "other", "default"], None]

    @torch.no_grad()
    def run(i):
        pair = {"pixel_values": torch.ones(3, 3, 16, 16), "input_ids": TEXTS[i]}
        return model(**pair, **({"adapter_names": names[i]} if names[i] else {})).itm_score

    alone = [run(i) for i in range(THREADS)]
    for _ in range(3):
        assert all(map(close, together([*between_hooks(model), model.base_model.model.itm_head], run), alone))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_mixed_batches_of_a_layer_that_is_trained_in_full():
    torch.manual_seed(0)
    model = get_peft_model(Net(), aurora_config(modules_to_save=["head"])).eval()
    model.add_adapter("other", aurora_config(modules_to_save=["head"]))
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["other"].weight.mul_(-1)
    x = torch.randn(THREADS, 2, 5, 8)
    names = [["default", "other"], None, ["other", "__base__"], ["other", "other"]]

    def run(i):
        return model(x[i], **({"adapter_names": names[i]} if names[i] else {}))

    alone = [run(i) for i in range(THREADS)]
    assert all(map(close, together([model.base_model.model.qkv, model.base_model.model.head], run), alone))


def test_a_mixed_batch_that_breaks_off_leaves_nothing_behind():
    model = adapted()
    handle = model.base_model.model.itm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    pair = {"pixel_values": torch.ones(3, 3, 16, 16), "input_ids": TEXTS[0]}
    with pytest.raises(ZeroDivisionError):
        model(**pair, adapter_names=["default", "__base__", "default"])
    handle.remove()
    assert PASS.mixed is None and not any(module._forward_pre_hooks for module in model.modules())

"""The momentum encoder and the queue that start from a converted checkpoint."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.blip.convert import read_momentum, rename
from aurora_petl.baselines import apply_method
from aurora_petl.errors import AuroraError
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings
from tests.helpers.checkpoints import TEXTS


def averages(task):
    with task._averages.swapped_in(dict(task.trained())):
        return {name: weight.detach().clone() for name, weight in task.trained()}


@pytest.mark.parametrize("method", ["heads", "aurora", "full"])
def test_averages_start_from_the_checkpoint(method, conversions, states):
    backbone, state = load_backbone(conversions["pretraining"].folder), states["pretraining"]
    apply_method(backbone, method)
    task = Retrieval(backbone, RetrievalSettings(queue_size=30, momentum_init="checkpoint"))
    own = {name: weight.detach() for name, weight in task.trained()}
    known = {rename(key.replace("_m.", ".", 1)): value for key, value in state.items() if "_m." in key}
    found = set()
    for name, average in averages(task).items():
        plain = next((key for key in known if name.replace(".modules_to_save.default", "").endswith(key)), None)
        assert torch.equal(average, own[name] if plain is None else known[plain]), name
        found |= {plain} - {None}
    heads = {f"{part}_proj.{kind}" for part in ("vision", "text") for kind in ("weight", "bias")}
    everything = {name for name in known if "position_ids" not in name}
    assert found == (everything if method == "full" else heads)


def test_the_queue_starts_from_the_checkpoint_as_negatives(conversions, states):
    backbone, state = load_backbone(conversions["pretraining"].folder), states["pretraining"]
    apply_method(backbone, "heads")
    task = Retrieval(backbone, RetrievalSettings(queue_size=30, momentum_init="checkpoint"))
    assert torch.equal(task._contrast.image[:24], state["image_queue"].T)
    assert torch.equal(task._contrast.text[:24], state["text_queue"].T)
    contrast = task._contrast
    assert contrast.ids.tolist() == [-100] * 24 + [-1] * 6 and contrast.next_row == 24
    pixels, texts = torch.randn(3, 3, 64, 64), backbone.texts(TEXTS, 35)
    batch = pixels, texts.ids, texts.mask, torch.tensor([0, 1, 2])
    with torch.no_grad():
        image, text = backbone.encode_image(pixels).feature, backbone.encode_text(texts).feature
        with task._averages.swapped_in(dict(task.trained())):
            teacher_image, teacher_text = backbone.encode_image(pixels).feature, backbone.encode_text(texts).feature
        to_text = image @ torch.cat([teacher_text, state["text_queue"].T]).T / 0.043
        to_image = text @ torch.cat([teacher_image, state["image_queue"].T]).T / 0.043
        right = torch.arange(3)
        expected = (F.cross_entropy(to_text, right) + F.cross_entropy(to_image, right)) / 2
        task.eval()  # leaves averages and queue as they are
        assert task(*batch)["itc"].item() == pytest.approx(expected.item(), rel=1e-4)
    task.train()(*batch)
    assert contrast.ids.tolist() == [-100] * 24 + [0, 1, 2] + [-1] * 3


def test_a_smaller_queue_takes_what_fits(conversions):
    backbone = load_backbone(conversions["pretraining"].folder)
    apply_method(backbone, "heads")
    for size in (10, 0):
        task = Retrieval(backbone, RetrievalSettings(queue_size=size, momentum_init="checkpoint"))
        contrast = task._contrast
        assert contrast.next_row == 0 and contrast.ids.tolist() == [-100] * size


def test_a_model_without_momentum_cannot_start_from_it(backbone):
    apply_method(backbone, "heads")
    with pytest.raises(AuroraError, match=r"blip-mini has no momentum\.safetensors.*momentum_init=copy"):
        Retrieval(backbone, RetrievalSettings(momentum_init="checkpoint"))
    with pytest.raises(AuroraError, match="momentum_init is 'both'; choose copy or checkpoint"):
        RetrievalSettings(momentum_init="both")


def test_a_broken_momentum_file_is_named(conversions, tmp_path):
    shutil.copytree(conversions["vqa"].folder, tmp_path / "model")
    (tmp_path / "model/momentum.safetensors").write_bytes(b"nothing")
    with pytest.raises(AuroraError, match=r"momentum\.safetensors is broken"):
        read_momentum(tmp_path / "model", [], 64)
    save_file({"image_queue": torch.zeros(3, 4)}, tmp_path / "model/momentum.safetensors")
    with pytest.raises(AuroraError, match="has no text_queue; convert the checkpoint again"):
        read_momentum(tmp_path / "model", [], 64)
    queues = {"image_queue": torch.zeros(3, 4), "text_queue": torch.full((3, 4), torch.inf)}
    save_file(queues, tmp_path / "model/momentum.safetensors")
    with pytest.raises(AuroraError, match="text_queue holds NaN or infinity"):
        read_momentum(tmp_path / "model", [], 64)

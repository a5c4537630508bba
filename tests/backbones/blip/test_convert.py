"""Original checkpoints to model folders: the same numbers, every key accounted for, one line for a wrong file."""

import errno
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from aurora_petl.backbones import blip, load_backbone
from aurora_petl.backbones.blip.convert import convert, read_momentum, rename
from aurora_petl.baselines import apply_method
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings
from aurora_petl.training import prepare
from tests.helpers import checkpoints

MAKERS = {
    "pretraining": checkpoints.pretraining,
    "retrieval": checkpoints.retrieval,
    "vqa": checkpoints.vqa,
}
TEXTS = ["a red apple", "a dog in the rain, beside two other dogs", "keys"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A .pth of each kind, with what training writes beside the weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind, make in MAKERS.items():
        torch.save({"model": make(), "config": {"vit": "base"}, "epoch": 3}, root / f"{kind}.pth")
    return {kind: root / f"{kind}.pth" for kind in MAKERS}


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """The reports of their conversions; `folder` is in each."""
    root = tmp_path_factory.mktemp("models") / "deep"
    return {kind: convert(path, root / kind) for kind, path in files.items()}


@pytest.fixture(scope="module")
def states(files):
    return {kind: torch.load(path, weights_only=True)["model"] for kind, path in files.items()}


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
@torch.no_grad()
def test_the_converted_model_computes_what_the_original_does(kind, done, states):
    backbone, original = load_backbone(done[kind].folder), checkpoints.Original(states[kind])
    backbone.model.eval()
    texts = backbone.texts(TEXTS, 35)
    ids, mask = texts.ids, texts.mask
    assert (mask == 0).any()
    torch.manual_seed(1)
    pixels = torch.randn(3, 3, 64, 64)
    image = backbone.encode_image(pixels)
    assert torch.allclose(image.states, original.image(pixels), atol=1e-5)
    itc = image.feature @ backbone.encode_text(texts).feature.T
    assert torch.allclose(itc, original.itc(pixels, ids, mask), atol=1e-5)
    itm = backbone.match(texts, image.states)
    assert itm.std() > 0.1
    assert torch.allclose(itm, original.itm(pixels, ids, mask), atol=1e-5)
    assert backbone.model.temperature().item() == pytest.approx(0.043)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_key_is_used_or_accounted_for(kind, done, states):
    report, state = done[kind], states[kind]
    assert sorted([*report.used, *report.momentum, *report.dropped]) == sorted(state)
    assert all("position_ids" in key or "queue" in key or ".predictions.decoder." in key for key in report.dropped)
    assert {key for key in state if "_m." in key and "position_ids" not in key} <= set(report.momentum)
    weights = load_file(report.folder / "model.safetensors")
    assert len(weights) == len(report.used)
    for key in report.used:
        if key != "temp":
            assert torch.equal(weights[rename(key)], state[key]), key
    assert (report.folder / "momentum.safetensors").is_file() == (kind != "vqa")
    assert not list(report.folder.parent.glob("*.part"))


@pytest.mark.parametrize(
    "kind, classes",
    [
        ("pretraining", [BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForConditionalGeneration]),
        ("retrieval", [BlipForImageTextRetrieval]),
        ("vqa", [BlipForQuestionAnswering, BlipForConditionalGeneration]),
    ],
)
def test_transformers_classes_find_all_their_weights(kind, classes, done, states):
    for made in classes:
        model, report = made.from_pretrained(done[kind].folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
        own = dict(model.named_parameters(remove_duplicate=False))
        for key, value in states[kind].items():
            if (name := rename(key)) in own:
                assert torch.equal(own[name], value), key
    assert json.loads((done[kind].folder / "config.json").read_text())["architectures"] == [classes[0].__name__]


def test_configuration_follows_the_shapes(done):
    config = BlipConfig.from_pretrained(done["pretraining"].folder)
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (192, 3, 3)
    assert (vision.image_size, vision.patch_size, vision.layer_norm_eps) == (64, 16, 1e-6)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (128, 3, 2)
    assert (text.encoder_hidden_size, text.vocab_size, text.layer_norm_eps) == (192, 30524, 1e-12)
    assert config.image_text_hidden_size == 32
    tokenizer = AutoTokenizer.from_pretrained(done["pretraining"].folder)
    assert tokenizer.model_max_length == text.max_position_embeddings == 40
    assert tokenizer("a dog").input_ids == [101, 1037, 3899, 102]
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    size = json.loads((done["pretraining"].folder / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 64, "width": 64}


def test_a_decoder_that_is_not_tied_keeps_both_weights(states, tmp_path):
    state = dict(states["vqa"])
    state["text_decoder.cls.predictions.decoder.bias"] = state["text_decoder.cls.predictions.bias"] + 1
    torch.save({"model": state}, tmp_path / "vqa.pth")
    report = convert(tmp_path / "vqa.pth", tmp_path / "model")
    assert "text_decoder.cls.predictions.decoder.bias" in report.used
    assert "text_decoder.cls.predictions.decoder.weight" in report.dropped


def test_a_checkpoint_of_vqa_says_what_retrieval_lacks(done):
    assert done["vqa"].lacking == {"retrieval": ["vision_proj", "text_proj", "itm_head"]}
    with pytest.raises(AuroraError, match="has no vision_proj, text_proj, itm_head, which retrieval needs"):
        load_backbone(done["vqa"].folder)


def test_old_torch_files_are_read_too(states, tmp_path):
    torch.save({"model": states["retrieval"]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert(tmp_path / "old.pth", tmp_path / "model")
    assert load_backbone(tmp_path / "model").model.temperature().item() == pytest.approx(0.043)


# Picture sizes


@torch.no_grad()
def test_positions_for_another_size_equal_transformers_own_at_every_call():
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 144, 144)
    resized, plain = load_backbone("blip-mini", image_size=144), load_backbone("blip-mini")
    wanted = plain.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    assert resized.image_size == resized.model.config.vision_config.image_size == 144
    assert torch.allclose(resized.image_states(pixels), wanted, atol=1e-6)
    first = "vision_model.embeddings.position_embedding"
    before, after = plain.model.state_dict()[first], resized.model.state_dict()[first]
    assert after.shape == (1, 145, 192) and torch.equal(before[:, 0], after[:, 0])
    assert load_backbone("blip-mini", image_size=144, weights=False).model.state_dict()[first].shape == after.shape


def test_converting_to_a_size_equals_loading_at_it(files, done, tmp_path):
    folder = convert(files["retrieval"], tmp_path / "model", image_size=96).folder
    loaded = load_backbone(done["retrieval"].folder, image_size=96).model.state_dict()
    for name, value in load_backbone(folder).model.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    name = "vision_model.embeddings.position_embedding"
    small, large = (read_momentum(path, [name], 96).weights[name] for path in (done["retrieval"].folder, folder))
    assert small.shape == (1, 37, 192) and torch.equal(small, large)


@pytest.mark.parametrize("size, fit", [(100, "96 and 108"), (7, "12"), (-12, "12"), (0, "12")])
def test_sizes_that_patches_do_not_fill_are_refused(size, fit):
    for weights in (True, False):
        with pytest.raises(AuroraError, match=rf"image_size is {size}, .*12 pixels.*: {fit}$"):
            load_backbone("blip-mini", image_size=size, weights=weights)


def test_a_recipe_sets_the_size(folder):
    recipe = load_recipe(None, [f"data={folder}", "image_size=72", "train.batch_size=4"])
    assert prepare(recipe, check=False).backbone.image_size == 72
    assert load_recipe(None, []).image_size == 0


# The momentum encoder's start


def averages(task):
    with task._averages.swapped_in(dict(task.trained())):
        return {name: weight.detach().clone() for name, weight in task.trained()}


@pytest.mark.parametrize("method", ["heads", "aurora", "full"])
def test_averages_start_from_the_checkpoint(method, done, states):
    backbone, state = load_backbone(done["pretraining"].folder), states["pretraining"]
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


def test_the_queue_starts_from_the_checkpoint_as_negatives(done, states):
    backbone, state = load_backbone(done["pretraining"].folder), states["pretraining"]
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


def test_a_smaller_queue_takes_what_fits(done):
    backbone = load_backbone(done["pretraining"].folder)
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


# Models of the hub


@torch.no_grad()
def test_hub_configurations_are_put_right(done, states):
    """As transformers has BLIP by default: 8 heads for texts, vision epsilon 1e-5."""
    path = done["retrieval"].folder
    config = BlipConfig.from_pretrained(path)
    config.text_config.num_attention_heads, config.vision_config.layer_norm_eps = 8, 1e-5
    backbone = blip.load(path, config, "Salesforce/blip-itm-base-coco")
    backbone.model.eval()
    pixels, texts = torch.randn(3, 3, 64, 64), backbone.texts(TEXTS, 35)
    wanted = checkpoints.Original(states["retrieval"]).itm(pixels, texts.ids, texts.mask)
    assert torch.allclose(backbone.match(texts, backbone.image_states(pixels)), wanted, atol=1e-5)


# The command


def test_the_command_prints_what_became_of_the_keys(files, done, tmp_path, capsys):
    out = tmp_path / "models/mine"
    assert main(["convert", str(files["pretraining"]), "--out", str(out), "--image-size", "96"]) == 0
    printed = capsys.readouterr().out
    report = done["pretraining"]
    assert "pictures of 96 x 96 pixels" in printed
    assert "vision: 3 layers, 192 wide, 3 heads" in printed and "text: 3 layers, 128 wide, 2 heads" in printed
    cells = {line.split("  ")[0]: line.split()[-2:] for line in printed.splitlines()}
    assert cells["weights of the model"] == [str(len(report.used)), "model.safetensors"]
    assert cells["momentum encoder and queue"] == [str(len(report.momentum)), "momentum.safetensors"]
    dropped = [int(cell[0]) for cell in cells.values() if cell[1:] == ["dropped"]]
    assert sum(dropped) == len(report.dropped)
    assert "not for" not in printed and str(out) in printed
    assert load_backbone(out).image_size == 96


def with_code(path: Path) -> None:
    torch.save({"model": {}, "config": Path("x")}, path)


def cut_short(path: Path) -> None:
    torch.save({"model": checkpoints.vqa()}, path)
    path.write_bytes(path.read_bytes()[:-1000])


def another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no weights")


def saved(change):
    def make(path: Path) -> None:
        state = checkpoints.retrieval()
        change(state)
        torch.save({"model": state}, path)

    return make


def renamed(state) -> None:
    for n in range(5):
        state[f"visual_encoder.blocks.0.lora_{n}"] = torch.zeros(2)


def without_a_layer_norm(state) -> None:
    del state["text_encoder.encoder.layer.1.output.LayerNorm.bias"]


def with_a_wide_head(state) -> None:
    state["itm_head.weight"] = torch.zeros(3, 128)


def odd_width(state) -> None:
    state["visual_encoder.pos_embed"] = torch.zeros(1, 17, 200)


def no_square(state) -> None:
    state["visual_encoder.pos_embed"] = torch.zeros(1, 18, 192)


def other_words(state) -> None:
    state["text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(21128, 128)


def without_a_queue(state) -> None:
    del state["text_queue"]


def a_far_layer(state) -> None:
    state["text_encoder.encoder.layer.999999999.output.dense.bias"] = torch.zeros(128)


def not_a_number(state) -> None:
    state["itm_head.bias"][1] = torch.nan


def sparse(state) -> None:
    state["itm_head.weight"] = torch.zeros(2, 128).to_sparse()


def on_meta(state) -> None:
    state["itm_head.weight"] = torch.zeros(2, 128, device="meta")


def quantised(state) -> None:
    state["itm_head.weight"] = torch.quantize_per_tensor(torch.zeros(2, 128), 0.1, 0, torch.qint8)


def a_number_for_a_name(state) -> None:
    state[7] = torch.zeros(1)


def a_long_name(state) -> None:
    state["x\n" * 10_000] = torch.zeros(1)


def of_no_size(state) -> None:
    state["visual_encoder.patch_embed.proj.weight"] = torch.zeros(192, 3, 0, 0)


BAD = {
    "a pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of git-lfs"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: it is a folder"),
    "a pipe": (os.mkfifo, "cannot be read: it is a pipe"),
    "a far layer": (saved(a_far_layer), "not whole: of the layers .* before 999999999 are missing"),
    "NaN": (saved(not_a_number), "itm_head.bias holds NaN or infinity"),
    "sparse": (saved(sparse), "itm_head.weight is no plain tensor"),
    "on no device": (saved(on_meta), "itm_head.weight is no plain tensor"),
    "quantised": (saved(quantised), "itm_head.weight is no plain tensor|no file of torch.save"),
    "a number for a name": (saved(a_number_for_a_name), "7 among its weights is no tensor"),
    "a long name": (saved(a_long_name), "1 keys have no place"),
    "of no size": (saved(of_no_size), "weights of no size"),
    "no file": (lambda path: None, "no such file"),
    "a text": (lambda path: path.write_text("hello"), "no file of torch.save"),
    "empty": (lambda path: path.write_bytes(b""), "no file of torch.save"),
    "cut short": (cut_short, "or not all of one; download it again"),
    "another archive": (another_archive, "no file of torch.save"),
    "code": (with_code, "holds pathlib.* can run code.*refused"),
    "bare weights": (lambda path: torch.save({"a": torch.zeros(1)}, path), "has no 'model'.*it has a$"),
    "a tensor": (lambda path: torch.save(torch.zeros(1), path), "has no 'model'.*holds a Tensor"),
    "no tensors": (lambda path: torch.save({"model": {"x": 1}}, path), "x among its weights is no tensor"),
    "another model": (lambda path: torch.save({"model": {"fc": torch.zeros(1)}}, path), "it has no visual_encoder"),
    "unknown keys": (saved(renamed), "5 keys have no place.*lora_0.*lora_2.* and 2 more"),
    "not whole": (saved(without_a_layer_norm), "lacks 1 weights, text_encoder.encoder.layer.1.output.LayerNorm.bias"),
    "a wide head": (saved(with_a_wide_head), r"no place in BLIP of this size: itm_head.weight \(3, 128\)"),
    "an odd width": (saved(odd_width), "no known size.*vision width of 200"),
    "no square": (saved(no_square), "no known size.*17 picture positions"),
    "other words": (saved(other_words), "no known size.*21128 words"),
    "half a queue": (saved(without_a_queue), "without both of image_queue and text_queue"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
    make, message = BAD[case]
    path = tmp_path / "file.pth"
    make(path)
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and str(path) in err
    with pytest.raises(AuroraError, match=message):
        convert(path, tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} <= {"file.pth"}


def test_wrong_uses_are_one_line(files, done, tmp_path, capsys):
    path, there = str(files["retrieval"]), str(done["retrieval"].folder)
    for words, message in (
        (["--out", there], "exists already"),
        (["--out", str(tmp_path / "x"), "--image-size", "100"], "96 and 112"),
    ):
        assert main(["convert", path, *words]) == 1
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["convert", path])
    assert "--out" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", ["save_file", "_save_preprocessing"])
def test_a_full_disk_is_one_line_and_leaves_no_folder(writer, files, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        if writer == "_save_preprocessing":
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "model"))
        Path(args[1]).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(f"aurora_petl.backbones.blip.convert.{writer}", full)
    assert main(["convert", str(files["vqa"]), "--out", str(tmp_path / "model")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and str(tmp_path / "model") in err
    assert not list(tmp_path.iterdir())


def test_a_converted_folder_has_the_permissions_of_the_umask(files, tmp_path):
    before = os.umask(0o027)
    try:
        folder = convert(files["vqa"], tmp_path / "model").folder
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_a_broken_momentum_file_is_named(done, tmp_path):
    shutil.copytree(done["vqa"].folder, tmp_path / "model")
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

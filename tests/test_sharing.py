"""Runs that leave the machine: their card, what goes to the hub and comes back, and folders for transformers alone."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers.models.auto import image_processing_auto

import aurora_petl
from aurora_petl import sharing
from aurora_petl.backbones import hub, load_backbone
from aurora_petl.baselines import apply_method, save_adapter, weight_counts
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.export import export
from aurora_petl.files import write_json
from aurora_petl.recipe import load_recipe, located
from aurora_petl.report import ADAPTER_PLACE, RUN_PLACE, run_card
from aurora_petl.search import encoder
from tests.helpers.families import make
from tests.helpers.pictures import draw

SCORES = {"text_recall@1": 12.34, "image_recall@1": 56.78, "mean_recall": 34.56}
DATA = {"name": "my|photos", "kind": "pictures with captions", "train": 1200, "validation": 60, "test": 70}
WORDS = ["a red circle", "a photo of some blue square on the ground"]
FUSION = ["method_options.context=released", "method_options.gate=scale_shift"]


def tuned(out, *fields):
    """A finished run's folder with an adapter that nothing trained, its weights drawn at random."""
    recipe = located(load_recipe(None, ["data=/home/me/my|photos", "method_options.r=4", *fields]))
    backbone = load_backbone(recipe.model, task=recipe.task.name, image_size=recipe.image_size or None)
    apply_method(backbone, recipe.method, recipe.method_options)
    torch.manual_seed(0)
    for weight in backbone.parameters():
        if weight.requires_grad:
            weight.data.add_(0.05 * torch.randn_like(weight))
    metrics = {"test": SCORES, "zero_shot_test": {name: value / 2 for name, value in SCORES.items()}, "test_rows": 70}
    metrics |= {"intervals": {"test": {"mean_recall": [30.04, 40.06]}}}
    metrics |= {"data": DATA, "weights": weight_counts(backbone)}
    out.mkdir(parents=True)
    recipe.save(out / "recipe.yaml")
    save_adapter(backbone, out / "adapter", run_card(recipe, metrics))
    for name in ("curve.png", "gallery.png"):
        draw("circle", "red").save(out / name)
    write_json(out / "metrics.json", metrics)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tuned(tmp_path_factory.mktemp("runs") / "mine", *FUSION)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make("clip", tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory, clip):
    return tuned(tmp_path_factory.mktemp("runs") / "clip", f"model={clip}")


@pytest.fixture(scope="module")
def images():
    return [draw("circle", "red", 50), draw("square", "blue", 70)]


# The card


def test_the_card_says_what_was_trained_and_how_to_load_it(run, images):
    text = (run / "adapter/README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "peft" and card.data.license is None and card.data.base_model is None
    assert card.data.tags == ["aurora-petl", "aurora", "image-text-retrieval"]
    rows = text.splitlines()
    assert "| model | blip-mini |" in rows and "| task | retrieval |" in rows
    assert r"| data | my\|photos, pictures with captions, 1,200 to train, 60 to validate, 70 to test |" in rows
    assert next(row for row in rows if row.startswith("| options |")).count("gate=scale_shift") == 1
    assert re.search(r"\| weights that train \| [\d,]+, 49,795 of them in heads, \d\.\d{3}% of the model's \|", text)
    assert "On the test split, 70 rows; " in text and "|  | untuned | tuned |" in rows
    assert "| T R@1 | 6.2 | 12.3 |" in rows and "| mean | 17.3 | 34.6 [30.0, 40.1] |" in rows
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert first.startswith("import aurora_petl\n") and second.startswith("import aurora_petl  # first")
    names: dict = {}
    exec(second.replace(ADAPTER_PLACE, str(run / "adapter")), names)  # what the card tells a reader to run
    tuned = aurora_petl.load(run)
    own, theirs = tuned.backbone.module.state_dict(), names["model"].state_dict()
    assert isinstance(names["model"], PeftModel) and all(torch.equal(own[name], theirs[name]) for name in own)
    exec(first.replace(RUN_PLACE, str(run)).replace('["cat.jpg"]', "pictures"), pictures := {"pictures": images})
    assert np.array_equal(pictures["vectors"], tuned.encode_images(images))


@pytest.mark.parametrize(("method", "library"), [("lora", "peft"), ("full", "aurora-petl")])
def test_the_front_matter_names_the_model_of_the_hub(method, library):
    recipe = load_recipe(None, ["model=Salesforce/blip-vqa-base", f"method={method}", "task.name=vqa"])
    card = ModelCard(run_card(recipe, {}))  # of a run of an earlier release, which says little
    assert (card.data.library_name, card.data.base_model) == (library, "Salesforce/blip-vqa-base")
    assert card.data.pipeline_tag == "visual-question-answering" and method in card.data.tags
    assert card.data["base_model_relation"] == ("adapter" if method == "lora" else "finetune")
    assert "model.answer(" in card.text and ("PeftModel" in card.text) == (method == "lora")
    assert "AURORA_PETL:" not in card.text


# The hub


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """The hub's client, whose uploads go to a folder: the calls, and what was uploaded."""
    calls: list = []

    def create(name, **more):
        calls.append((name, more))
        return f"https://huggingface.co/{name}"

    def upload(*, repo_id, folder_path, commit_message):
        calls.append((repo_id, commit_message))
        shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setattr("huggingface_hub.create_repo", create)
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    monkeypatch.setattr(sharing, "is_reachable", lambda: True)
    return calls, tmp_path / "hub"


def test_a_pushed_run_is_loaded_by_its_name(run, uploads, images, monkeypatch, tmp_path, capsys):
    calls, pushed = uploads
    assert main(["push", str(run), "you/mine", "--private"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/you/mine\n"
    assert calls == [
        ("you/mine", {"private": True, "exist_ok": True}),
        ("you/mine", "Adapter trained by Aurora"),
    ]
    adapter = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in pushed.iterdir()} == adapter | {"recipe.yaml", "metrics.json", "curve.png"}
    texts = {path.name: path.read_text() for path in pushed.iterdir() if path.suffix in (".md", ".json", ".yaml")}
    assert not any("/home/me" in text or str(run) in text for text in texts.values())
    assert texts["README.md"].count('"you/mine"') == 2 and ADAPTER_PLACE not in texts["README.md"]

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **more: {"you/mine": str(pushed)}[name])
    ours, theirs = aurora_petl.load(run), aurora_petl.load("you/mine")
    assert theirs.recipe.data == "my|photos" and theirs.metrics["test"] == SCORES
    assert np.array_equal(ours.encode_images(images), theirs.encode_images(images))
    (folder := tmp_path / "album").mkdir()
    images[0].save(folder / "red.png")
    index = aurora_petl.Index.build(folder, "you/mine", tmp_path / "album.index")
    assert [found.path.name for found in index.search("a red circle")] == ["red.png"]
    model = PeftModel.from_pretrained(load_backbone("blip-mini").model, pushed)  # what `import aurora_petl` allows
    assert model.peft_config["default"].gate == "scale_shift"


def test_a_dry_run_uploads_nothing(run, uploads, capsys):
    assert main(["push", str(run), "you/mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert uploads[0] == [] and not uploads[1].exists()
    size = (run / "adapter/adapter_model.safetensors").stat().st_size
    assert re.search(rf"^adapter_model.safetensors +{round(size / 1e3)} KB$", out, re.MULTILINE)
    assert "gallery.png" not in out.rpartition("\n\n")[0] and "everybody" in out


def test_a_model_in_a_folder_goes_by_its_name_of_the_hub(clip_run, clip, uploads):
    assert main(["push", str(clip_run), "you/mine", "--base-model", "openai/clip-vit-base-patch32"]) == 0
    for file in uploads[1].iterdir():
        if file.suffix != ".safetensors":
            assert str(clip).encode() not in file.read_bytes(), file.name
    card = ModelCard.load(uploads[1] / "README.md")
    assert card.data.base_model == "openai/clip-vit-base-patch32" and card.data.library_name == "peft"
    config = json.loads((uploads[1] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "openai/clip-vit-base-patch32"


def offline(run, clip_run, patch):
    patch.setattr(sharing, "is_reachable", lambda: False)
    return run, ["you/mine"]


def logged_out(run, clip_run, patch):
    patch.setattr("huggingface_hub.get_token", lambda: None)
    return run, ["you/mine"]


def refused(run, clip_run, patch):
    def refuse(*_, **__):
        raise PermissionError("403 Forbidden: you have no right\nmore")

    patch.setattr("huggingface_hub.upload_folder", refuse)
    return run, ["you/mine"]


def unnamed(run, clip_run, patch):
    return run, ["mine"]


def unfinished(run, clip_run, patch):
    return run / "adapter", ["you/mine"]


def of_a_folder(run, clip_run, patch):
    return clip_run, ["you/mine"]


def of_another_model(run, clip_run, patch):
    return run, ["you/mine", "--base-model", "openai/clip-vit-base-patch32"]


REFUSED = {
    offline: "the hub cannot be reached; check the network, then push again",
    logged_out: "nobody is logged in to the hub; run hf auth login, or set HF_TOKEN",
    refused: "the hub does not take you/mine (403 Forbidden: you have no right); check that the login may write there",
    unnamed: "'mine' is no name of the hub; give owner and name, such as you/my-photos",
    unfinished: "holds no finished run; train it to its end",
    of_a_folder: "a folder that others do not have; say with --base-model which model of the hub it is",
    of_another_model: "the run tuned blip-mini; leave it out",
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_pushed_is_one_line(case, run, clip_run, uploads, monkeypatch, capsys):
    folder, words = case(run, clip_run, monkeypatch)
    assert main(["push", str(folder), *words]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and REFUSED[case] in err


def test_a_model_of_the_hub_is_no_run(monkeypatch, clip):
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **more: str(clip))
    assert encoder.run_folder("openai/clip-vit-base-patch32") is None
    assert aurora_petl.load("openai/clip-vit-base-patch32").feature_shape == (16,)


# transformers alone


def features(folder, kind, images, texts):
    """Unit vectors of pictures and texts by transformers' own classes, and what it says of the weights."""
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = image_processing_auto.AutoImageProcessor.from_pretrained(folder)
    shown = processor(images=images, return_tensors="pt")
    pixels = shown["pixel_values"]
    padding = "max_length" if kind.startswith("Siglip") else True
    tokens = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt")
    with torch.no_grad():
        if kind == "BlipForImageTextRetrieval":
            image = model.vision_proj(model.vision_model(pixels).last_hidden_state[:, 0])
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            text = model.text_proj(model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])
        elif kind == "Blip2ForImageTextRetrieval":
            processor = transformers.AutoProcessor.from_pretrained(folder)
            given = processor(images=images, text=texts, padding=True, return_tensors="pt")
            found = model(**given)
            image, text = found.image_embeds, found.text_embeds
        else:
            tokens = {name: part for name, part in tokens.items() if name in ("input_ids", "attention_mask")}
            image = model.get_image_features(**shown).pooler_output
            text = model.get_text_features(**tokens).pooler_output
    return *(torch.nn.functional.normalize(part, dim=-1).numpy() for part in (image, text)), report


@pytest.mark.parametrize(
    ("family", "kind", "fields"),
    [
        ("clip", "CLIPModel", []),
        ("clip", "CLIPModel", ["image_size=64"]),
        ("siglip", "SiglipModel", ["image_size=64"]),
        ("metaclip_2", "MetaClip2Model", ["method=full", "method_options={}"]),
        ("siglip", "SiglipModel", ["method=lora"]),
        ("naflex", "Siglip2Model", []),
        ("blip-2", "Blip2ForImageTextRetrieval", []),
        ("blip-mini", "BlipForImageTextRetrieval", FUSION),
        ("blip-mini", "BlipForImageTextRetrieval", ["image_size=132"]),
    ],
    ids=lambda part: "" if isinstance(part, str) else "-".join(part),
)
def test_transformers_alone_gives_the_run_s_vectors(family, kind, fields, tmp_path, images):
    model = "blip-mini" if family == "blip-mini" else make(family, tmp_path / "model")
    run = tuned(tmp_path / "run", f"model={model}", *fields)
    made = export(str(run), str(tmp_path / "out"))  # text will do
    assert made.kind == kind
    tuned_model, untuned = aurora_petl.load(run), aurora_petl.load(model)
    image, text, report = features(made.folder, kind, images, WORDS)
    assert np.allclose(image, tuned_model.encode_images(images), atol=1e-5)
    assert np.allclose(text, tuned_model.encode_texts(WORDS), atol=1e-5)
    if not any("image_size" in field for field in fields):
        assert not np.allclose(image, untuned.encode_images(images), atol=1e-2)
    blip = kind.startswith("Blip")
    assert not report["missing_keys"] and set(report["unexpected_keys"]) == ({"temperature"} if blip else set())
    assert any(note.startswith("temperature:") for note in made.notes) == blip
    assert {note.partition(" ")[0] for note in made.notes} >= ({"context", "gate"} if fields is FUSION else set())
    if blip:
        again = aurora_petl.load(made.folder)
        assert torch.equal(again.backbone.model.temperature.weight, tuned_model.backbone.model.temperature.weight)


def test_an_export_takes_no_place_that_is_taken(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path)]) == 1
    assert f"{tmp_path} exists already; name another folder" in capsys.readouterr().err
    with pytest.raises(AuroraError, match="holds no run"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(AuroraError, match="form is 'onnx'; choose transformers or sentence-transformers"):
        export(run, tmp_path / "out", "onnx")
    assert main(["export", str(run), str(tmp_path / "deep/out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"transformers.BlipForImageTextRetrieval.from_pretrained('{tmp_path / 'deep/out'}')"
    assert [line.split()[0] for line in lines[:-1]] == ["context", "gate", "temperature:", "[ENC]:"]

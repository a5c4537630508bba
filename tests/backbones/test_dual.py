"""Dual encoders against transformers' own methods, processors and tokenizers, and every command with them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from aurora_petl.backbones import load_backbone, similarity
from aurora_petl.backbones.load import check_company
from aurora_petl.baselines import apply_method, load_adapter, save_adapter, weight_counts
from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.data.media import load_image
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from aurora_petl.search.results import Results
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings
from aurora_petl.training import prepare
from tests.helpers.by_heart import recall, trained
from tests.helpers.families import DUAL, LONGEST, WIDTH, make
from tests.helpers.pictures import draw

WORDS = ["a red circle", "a photo of some blue square on the ground", "two cats, a dog and " + "a house " * 20]
SIZES = ((40, 60), (60, 40), (33, 71), (20, 20))  # of pictures, height and width


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {kind: make(kind, tmp_path_factory.mktemp("models") / kind) for kind in DUAL}


@pytest.fixture(params=DUAL)
def path(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]


@torch.no_grad()
def test_features_and_logits_are_those_of_transformers(path, images):
    backbone = load_backbone(path)
    backbone.model.eval()
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    padding = "max_length" if model.config.model_type in ("siglip", "siglip2") else True
    tokens = tokenizer(WORDS, padding=padding, truncation=True, max_length=LONGEST, return_tensors="pt")
    read = AutoImageProcessor.from_pretrained(path)(images=images, return_tensors="pt")
    expected = model(**tokens, **read)
    own = torch.stack([backbone.view()(image) for image in images])
    if "spatial_shapes" in read:  # patches behind a row that has the shape
        assert torch.equal(own[:, 0, 0, :2].long(), read["spatial_shapes"])
    pixels = own[:, 0, 1:] if "spatial_shapes" in read else own
    assert torch.allclose(pixels, read["pixel_values"], atol=1e-6)
    texts = backbone.texts(WORDS)
    assert torch.equal(texts.ids, tokens["input_ids"])
    image, text = backbone.encode_image(own).feature, backbone.encode_text(texts).feature
    assert torch.allclose(image, expected.image_embeds, atol=1e-6)
    assert torch.allclose(text, expected.text_embeds, atol=1e-6)
    logits = backbone.logits(similarity(image, text))
    assert torch.allclose(logits, expected.logits_per_image, rtol=1e-6, atol=1e-5)  # CLIP's are up to 14


@torch.no_grad()
def test_a_text_has_one_feature_whatever_stands_beside_it(path):
    backbone = load_backbone(path)
    backbone.model.eval()
    together = backbone.encode_text(backbone.texts(WORDS)).feature
    for word, feature in zip(WORDS, together, strict=True):
        assert torch.allclose(backbone.encode_text(backbone.texts([word])).feature[0], feature, atol=1e-6)
        trimmed = backbone.texts([word, WORDS[-1]]).rows([0]).trimmed()
        assert torch.allclose(backbone.encode_text(trimmed).feature[0], feature, atol=1e-6)


@torch.no_grad()
def test_the_start_is_the_pretrained_model_and_the_weights_are_as_many_as_they_should_be(path, images):
    plain, backbone = load_backbone(path), load_backbone(path)
    apply_method(backbone, "aurora", {"r": 8})
    pixels = torch.stack([backbone.view()(image) for image in images])
    for one in (plain, backbone):
        one.module.eval()
    assert torch.equal(plain.encode_image(pixels).feature, backbone.encode_image(pixels).feature)
    texts = backbone.texts(WORDS)
    assert torch.equal(plain.encode_text(texts).feature, backbone.encode_text(texts).feature)
    slices = 2 * 2 * 3  # towers, layers, query with key and value
    counts = weight_counts(backbone)
    assert counts["adapter"] == 2 * 8 * WIDTH + 8 * slices + 8
    heads = {name: weight.numel() for name, weight in plain.model.named_parameters() if _is_head(name)}
    assert counts["heads"] == sum(heads.values()) and "logit_scale" in heads


def _is_head(name):
    return name.startswith(("visual_projection", "text_projection", "text_model.head", "logit_"))


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("clip", 1e-2),
        pytest.param("metaclip_2", 1e-2, marks=pytest.mark.slow),
        ("siglip", 6e-3),
        pytest.param("siglip2", 6e-3, marks=pytest.mark.slow),
        pytest.param("naflex", 6e-3, marks=pytest.mark.slow),
    ],
)
def test_forty_pairs_are_learned_by_heart(folders, kind, rate):
    task, batch = trained(folders[kind], 300, rate=rate)
    assert recall(task, batch) >= 0.975


def test_merged_equals_unmerged_and_saved_equals_loaded(path, tmp_path):
    task, batch = trained(path, 5, pairs=8)
    backbone = task.backbone
    with torch.no_grad():
        before = backbone.encode_image(batch["pixel_values"]).feature
        save_adapter(backbone, tmp_path / "adapter")
        loaded = load_backbone(path)
        load_adapter(loaded, tmp_path / "adapter", "aurora")
        assert torch.equal(loaded.encode_image(batch["pixel_values"]).feature, before)
        assert torch.equal(loaded.logits(before), backbone.logits(before))  # single parameters, too
        assert not torch.equal(loaded.logits(before), load_backbone(path).logits(before))
        backbone.adapter.merge_adapter()
        assert torch.allclose(backbone.encode_image(batch["pixel_values"]).feature, before, atol=1e-4)


def test_every_command(path, folder, tmp_path, capsys):
    out, index = tmp_path / "run", tmp_path / "pictures.index"
    few = ["train.max_steps=2", "train.evaluations=1", "method_options.r=4"]
    assert main(["params", str(path)]) == 0
    assert main(["train", "--data", str(folder), "--model", str(path), *few, "--out", str(out), "--quiet"]) == 0
    assert main(["evaluate", str(out), "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["metrics"] == json.loads((out / "metrics.json").read_text())["test"]
    assert main(["index", str(folder), "--model", str(out), "--out", str(index), "--quiet"]) == 0
    assert main(["search", "a red circle", "--index", str(index), "-k", "3"]) == 0
    said = "".join(capsys.readouterr())
    assert "cosine similarity" in said and "ITM" not in said and "rerank" not in said
    assert "ITM" not in load_recipe(out / "recipe.yaml").task.ranking.upper()
    assert main(["search", "a red circle", "--index", str(index), "--rerank", "4"]) == 1
    assert "has no second stage to rerank with" in capsys.readouterr().err
    library = Library(index)
    picture = draw("circle", "red")
    hits = Searcher(library).search(picture, 3)
    assert len(hits) == 3 and hits[0].score == pytest.approx(1.0, abs=1e-3)  # it is among them
    results = Results(library)
    before, after = results.answer(results.asked({"q": "a red circle", "view": "both", "k": "3"}))["views"]
    for column in (before, after):
        best = Searcher(library, column["view"]).search("a red circle", 3)
        assert [hit["path"] for hit in column["found"]] == [hit.what for hit in best]
        assert column["score"] == "cosine similarity"
    answer = results.answer(results.asked({"like": "0", "find": "captions", "k": "2"}))
    best = Searcher(library).search(load_image(library.path(0)), 2, texts=True)
    assert [hit["caption"] for hit in answer["views"][0]["found"]] == [hit.what for hit in best]
    assert results.about()["rerank"] == 0
    with pytest.raises(AuroraError, match="has no second stage to rerank with; leave out rerank"):
        results.asked({"q": "a red circle", "rerank": "5"})


def test_what_a_dual_encoder_lacks_is_told_before_data_are_read(folders, folder, tmp_path):
    def refused(words, kind="clip"):
        with pytest.raises(AuroraError) as error:
            load_backbone(folders[kind], task=words) if isinstance(words, str) else words()
        return str(error.value)

    assert "is of family CLIP, which does retrieval, not task 'vqa'; choose a model of type blip" in refused("vqa")
    backbone = load_backbone(folders["clip"], weights=False)
    assert "has no second stage to rank with" in refused(
        lambda: Retrieval.fitted(RetrievalSettings(ranking="itm"), backbone)
    )
    sigmoid = load_backbone(folders["siglip"], weights=False)
    assert "has no queue and no momentum encoder" in refused(
        lambda: Retrieval.fitted(RetrievalSettings(queue_size=64), sigmoid)
    )
    assert load_dataset(folder)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda path: (path / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda path: _change(path, image_processor_type="ViTImageProcessor"), "is of a 'ViTImageProcessor'"),
        (lambda path: _change(path, size=64, crop_size=64), "the two are of different models"),
        (lambda path: _change(path, do_normalize=False), "do_normalize is False"),
        (lambda path: _change(path, image_std=[0, 1, 1]), "image_std has a 0"),
        (lambda path: _change(path, resample=17), "resample is 17"),
        (lambda path: (path / "preprocessor_config.json").write_text("[]"), "not the settings of an image processor"),
        (lambda path: [file.unlink() for file in path.glob("*token*")], "has no tokenizer"),
        (lambda path: (path / "config.json").write_text('{"model_type": "t5"}'), "is of type 't5', which has no"),
        (lambda path: (path / "model.safetensors").unlink(), "has no model.safetensors"),
    ],
)
def test_files_that_do_not_fit_are_told(folders, tmp_path, broken, told):
    shutil.copytree(folders["clip"], tmp_path / "model")
    broken(tmp_path / "model")
    for look in (check_company, load_backbone):
        with pytest.raises(AuroraError) as error:
            look(tmp_path / "model")
        assert told in str(error.value) and "\n" not in str(error.value)


def _change(path, **fields):
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_tokenizer_of_another_model_is_told(folders, tmp_path):
    shutil.copytree(folders["siglip"], tmp_path / "model")
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    (tmp_path / "model" / "spiece.model").unlink()
    for file in folders["metaclip_2"].glob("*token*"):
        shutil.copy(file, tmp_path / "model")
    told = "take the tokenizer that the model was trained with|tokenizer cannot be read"
    for look in (check_company, load_backbone):
        with pytest.raises(AuroraError, match=told):
            look(tmp_path / "model")
    with pytest.raises(AuroraError, match=told):  # before the data, which are not there
        prepare(load_recipe("photos-dual", [f"model={tmp_path / 'model'}", f"data={tmp_path / 'gone'}"]))


def test_another_size_of_pictures(folders):
    backbone = load_backbone(folders["clip"], image_size=64)
    assert backbone.encode_image(torch.zeros(1, 3, 64, 64)).feature.shape == (1, 16)
    with pytest.raises(AuroraError, match="which patches of 8 pixels do not fill"):
        load_backbone(folders["clip"], image_size=30)

"""BLIP-2 against transformers' own model and processor, pictures of several vectors, and every command with it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Blip2ForImageTextRetrieval, Blip2Processor

from aurora_petl.backbones import Texts, blip2, checkpoint_layers, load_backbone, similarity
from aurora_petl.backbones.frames import frame_weights
from aurora_petl.backbones.load import check_company
from aurora_petl.baselines import apply_method, load_adapter, save_adapter, weight_counts
from aurora_petl.cli import main
from aurora_petl.data.rows import Item
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation import rerank as engine
from aurora_petl.evaluation.features import extract
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from aurora_petl.search.results import Results
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings
from tests.helpers.by_heart import recall, trained
from tests.helpers.families import LONGEST, QUERIES, VISION_WIDTH, WIDTH, make
from tests.helpers.pictures import draw

from .test_frames import Clips

WORDS = ["a red circle", "a photo of some blue square on the ground", "two cats, a dog and " + "a house " * 20, "a dog"]
SIZES = ((40, 60), (60, 40), (33, 71), (20, 20))  # of pictures, height and width


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make("blip-2", tmp_path_factory.mktemp("models") / "blip-2")


@pytest.fixture
def backbone(path):
    backbone = load_backbone(path)
    backbone.model.eval()
    return backbone


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]


@pytest.fixture(scope="module")
def theirs(path):
    return Blip2ForImageTextRetrieval.from_pretrained(path).eval()


@pytest.fixture(scope="module")
def inputs(path, images):
    """What transformers' processor makes of pictures with texts: before each, <image> as often as there are vectors."""
    processor = Blip2Processor.from_pretrained(path)
    limits = {"truncation": True, "max_length": LONGEST + QUERIES, "padding": True}
    return processor(images=images, text=WORDS, return_tensors="pt", **limits)


@pytest.fixture
def pixels(backbone, images):
    return torch.stack([backbone.view()(image) for image in images])


@torch.no_grad()
def test_itc_is_that_of_transformers(backbone, theirs, inputs, pixels):
    expected = theirs(**inputs)
    assert torch.allclose(pixels, inputs["pixel_values"], atol=1e-6)
    texts = backbone.texts(WORDS)
    assert torch.equal(texts.ids, inputs["input_ids"][:, QUERIES:])
    image, text = backbone.encode_image(pixels), backbone.encode_text(texts)
    assert image.feature.shape == (len(SIZES), *backbone.feature_shape) and backbone.feature_shape == (QUERIES, 16)
    assert torch.allclose(image.feature, expected.image_embeds, atol=1e-6)
    assert torch.allclose(text.feature, expected.text_embeds, atol=1e-6)
    found = similarity(image.feature, text.feature)
    assert torch.allclose(found, expected.logits_per_image, atol=1e-6)
    assert found.std() > 0.01 and image.feature.std(1).mean() > 0.01  # neither texts nor vectors are all alike
    assert torch.equal(backbone.logits(found), found / torch.tensor(0.07))


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_itm_is_that_of_transformers(backbone, theirs, inputs, pixels, shared):
    backbone.shares = backbone.shares and shared
    expected = theirs(**inputs, use_image_text_matching_head=True).logits_per_image
    states, texts = backbone.encode_image(pixels).states, backbone.texts(WORDS)
    assert torch.allclose(backbone.match(texts, states), expected, atol=1e-5)
    assert expected.std(0).min() > 1e-3
    which, rows = torch.tensor([2, 0, 0, 3, 2, 0]), torch.tensor([1, 0, 3, 3, 2, 1])
    pairs = {name: value[rows] for name, value in inputs.items()} | {"pixel_values": inputs["pixel_values"][which]}
    expected = theirs(**pairs, use_image_text_matching_head=True).logits_per_image
    assert torch.allclose(backbone.match(texts.rows(rows), states, which), expected, atol=1e-5)
    short = texts.rows([0]).trimmed()  # without the padding that stands beside a long text
    pair = {name: value[:1] for name, value in inputs.items()} | {"pixel_values": inputs["pixel_values"][2:3]}
    expected = theirs(**pair, use_image_text_matching_head=True).logits_per_image
    assert torch.allclose(backbone.match(short, states[2:3]), expected, atol=1e-5)


@torch.no_grad()
def test_the_engine_scores_each_pair_as_it_is_alone(backbone, theirs, pictures, monkeypatch):
    """Keys and values of a picture are computed once a block, in calls that are smaller than it."""
    monkeypatch.setattr(engine, "CALL_TOKENS", 24)
    calls = []
    key = backbone.model.qformer.encoder.layer[0].crossattention.attention.key
    key.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    features = extract(backbone, pictures.split("test"), max_tokens=LONGEST)
    assert features.image.shape[1:] == backbone.feature_shape
    encoded = len(calls)
    scores = engine.rerank(backbone, features, k_test=2)
    assert scores.reranked and sum(calls[encoded:]) == len(features.image_ids)
    rescored = np.argwhere(scores.image_to_text > -1000)
    assert len(rescored) == 2 * len(features.image_ids)
    for image, text in rescored[::3]:
        states = features.states.anew(image, image + 1)
        words = backbone.texts([features.texts[text]])
        queries = theirs.query_tokens
        output = theirs.qformer(
            query_embeds=theirs.embeddings(words.ids, query_embeds=queries),
            query_length=QUERIES,
            encoder_hidden_states=states,
        ).last_hidden_state
        expected = theirs.itm_head(output[:, :QUERIES]).mean(1)[0, 1]
        assert scores.image_to_text[image, text] == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_texts_weigh_the_frames_of_clips(backbone, theirs):
    """Against transformers' own model whose keys are weighed by a hook; [CLS] of each frame keeps its weight of 1."""
    torch.manual_seed(0)
    frames, tokens = 2, 17
    states = torch.randn(1, frames * tokens, VISION_WIDTH)
    texts = backbone.texts(["a red circle"])
    weights = torch.tensor([[0.4, 1.6]])
    per_key = weights.repeat_interleave(tokens, 1)
    per_key[:, ::tokens] = 1
    hooks = []
    for layer in theirs.qformer.encoder.layer:
        if layer.has_cross_attention:
            key = layer.crossattention.attention.key
            hooks.append(key.register_forward_hook(lambda module, args, output: output * per_key[..., None]))
    output = theirs.qformer(
        query_embeds=theirs.embeddings(texts.ids, query_embeds=theirs.query_tokens),
        query_length=QUERIES,
        encoder_hidden_states=states,
    ).last_hidden_state
    for hook in hooks:
        hook.remove()
    expected = theirs.itm_head(output[:, :QUERIES]).mean(1)
    assert torch.allclose(backbone.match(texts, states, frames=weights), expected, atol=1e-5)
    assert not torch.allclose(backbone.match(texts, states), expected, atol=1e-4)
    backbone.shares = False
    with pytest.raises(AuroraError, match=r"set task\.frame_attention=false"):
        backbone.match(texts, states, frames=weights)


def test_clips_are_reranked_and_trained_on(backbone, path):
    """A clip's vectors are means of its frames' vectors of the same query token; a pair scores what it does alone."""
    rows = [Item(shape, (f"a {shape}",), shape, "test", n) for n, shape in enumerate(("circle", "square", "triangle"))]
    clips = Clips("clips", rows, None, clips=True)
    with torch.no_grad():
        features = extract(backbone, clips, frames=2, max_tokens=LONGEST)
        assert features.frames.shape == (3, 2, QUERIES, 16)
        mean = features.frames.sum(1)
        assert torch.allclose(features.image, mean / mean.norm(dim=-1, keepdim=True), atol=1e-6)
        scores = engine.rerank(backbone, features, k_test=3).image_to_text
        for image, text in ((0, 2), (1, 1), (2, 0)):
            weights = frame_weights(features.text[text, None], features.frames[image, None])
            states = features.states.anew(image, image + 1)
            alone = backbone.match(backbone.texts([features.texts[text]]), states, frames=weights)
            assert scores[image, text] == pytest.approx(alone[0, 1].item(), abs=1e-5)
    pixels, texts = torch.randn(3, 2, 3, 32, 32, requires_grad=True), backbone.texts(features.texts)
    loss = Retrieval(load_backbone(path), RetrievalSettings())(pixels, texts.ids, texts.mask, torch.arange(3))["loss"]
    loss.backward()
    assert (pixels.grad.flatten(2).abs().sum(2) > 0).all()


@torch.no_grad()
def test_the_start_is_the_pretrained_model_and_the_weights_are_as_many_as_they_should_be(path, backbone, pixels):
    tuned = load_backbone(path)
    apply_method(tuned, "aurora", {"r": 8})
    tuned.module.eval()
    texts = backbone.texts(WORDS)
    plain, start = backbone.encode_image(pixels), tuned.encode_image(pixels)
    assert torch.equal(plain.feature, start.feature) and torch.equal(plain.states, start.states)
    assert torch.equal(backbone.encode_text(texts).feature, tuned.encode_text(texts).feature)
    which = [0, 1, 1, 3]
    assert torch.equal(backbone.match(texts, plain.states, which), tuned.match(texts, plain.states, which))
    counts = weight_counts(tuned)
    joint = backbone.feature_shape[-1]
    assert counts["heads"] == 2 * (WIDTH * joint + joint) + (2 * WIDTH + 2) + 1
    # factors of 24 and 32 wide; slices: query, key, value of 2 layers of pictures, 2 of texts and one that meets both
    assert counts["adapter"] == 2 * 8 * (VISION_WIDTH + WIDTH) + 8 * 3 * (2 + 2 + 1) + 8


@pytest.mark.slow
def test_forty_pairs_are_learned_by_heart(path):
    task, batch = trained(path, 500, rate=5e-3)
    assert recall(task, batch) >= 0.975


def test_a_step_of_training(path):
    """Loss is ITC over the nearest vectors plus ITM; gradients reach adapter, heads and temperature, with layers
    recomputed too."""
    losses = []
    for recomputed in (False, True):
        task, batch = trained(path, 0, pairs=4)
        task.train()
        if recomputed:
            checkpoint_layers(task.backbone.model)
            task.backbone.model.enable_input_require_grads()
        torch.manual_seed(0)
        parts = task(**batch)
        parts["loss"].backward()
        losses.append(float(parts["loss"].detach()))
        assert parts["loss"].item() == pytest.approx(parts["itc"].item() + parts["itm"].item(), abs=1e-6)
        without = [name for name, weight in task.trained() if weight.grad is None]
        assert not without
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    with torch.no_grad():
        image = task.backbone.encode_image(batch["pixel_values"]).feature
        text = task.backbone.encode_text(Texts(batch["input_ids"], batch["attention_mask"])).feature
        table = torch.einsum("ivp,tp->itv", image, text).max(2).values / 0.07
        expected = -(table.log_softmax(1).diag().mean() + table.log_softmax(0).diag().mean()) / 2
    assert parts["itc"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_merged_equals_unmerged_and_saved_equals_loaded(path, tmp_path):
    task, batch = trained(path, 5, pairs=8)
    backbone, texts = task.backbone, task.backbone.texts(["a red circle"])
    with torch.no_grad():
        before = backbone.encode_image(batch["pixel_values"])
        matched = backbone.match(texts, before.states[:1])
        save_adapter(backbone, tmp_path / "adapter")
        loaded = load_backbone(path)
        load_adapter(loaded, tmp_path / "adapter", "aurora")
        loaded.module.eval()
        assert torch.equal(loaded.encode_image(batch["pixel_values"]).feature, before.feature)
        assert torch.equal(loaded.match(texts, before.states[:1]), matched)
        assert torch.equal(loaded.logits(before.feature), backbone.logits(before.feature))  # the temperature, too
        assert not torch.equal(loaded.logits(before.feature), load_backbone(path).logits(before.feature))
        backbone.adapter.merge_adapter()
        after = backbone.encode_image(batch["pixel_values"])
        assert torch.allclose(after.feature, before.feature, atol=1e-4)
        assert torch.allclose(backbone.match(texts, after.states[:1]), matched, atol=1e-4)


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
    assert "ITC similarity" in capsys.readouterr().out
    assert main(["search", "a red circle", "--index", str(index), "-k", "3", "--rerank", "4"]) == 0
    assert "ITM match logit" in capsys.readouterr().out
    library = Library(index)
    searcher, picture = Searcher(library), draw("circle", "red")
    hits = searcher.search(picture, 3)
    assert len(hits) == 3 and hits[0].score == pytest.approx(1.0, abs=1e-3)  # it is among them
    features, encoder = library.picture_features("tuned").float(), searcher.encoder
    nearest = torch.einsum("ivp,p->iv", features, encoder.texts(["a red circle"])[0]).amax(1).sort(descending=True)
    found = searcher.search("a red circle", 3)
    assert [hit.score for hit in found] == pytest.approx(nearest.values[:3].tolist(), abs=1e-5)
    captions = searcher.search(picture, 2, texts=True)
    assert len(captions) == 2 and Searcher(library, kind="auto").search("a red circle", 3) == found
    pixels = encoder.transform(picture)[None]  # one picture with several texts
    near = {hit.what: encoder.beta * hit.score for hit in searcher.search(picture, len(library.texts), texts=True)}
    reranked = searcher.search(picture, 2, texts=True, rerank=4)
    alone = [encoder.match(pixels, [hit.what]).item() + near[hit.what] for hit in reranked]
    assert [hit.score for hit in reranked] == pytest.approx(alone, abs=1e-3)
    results = Results(library)
    for more, expected in (({}, searcher.search("a red circle", 3)), ({"rerank": "4"}, None)):
        answer = results.answer(results.asked({"q": "a red circle", "view": "both", "k": "3", **more}))
        hits = answer["views"][1]["found"]
        expected = expected or searcher.search("a red circle", 4, rerank=4)[:3]
        assert [(hit["row"], hit["path"]) for hit in hits] == [(hit.row, hit.what) for hit in expected]


def _writer(path):
    """A BLIP-2 for captions: its configuration says so, and its weights have no ITM head."""
    config = json.loads((path / "config.json").read_text())
    config["qformer_config"]["use_qformer_text_input"] = False
    (path / "config.json").write_text(json.dumps(config))


def _headless(path):
    model = Blip2ForImageTextRetrieval.from_pretrained(path)
    del model.itm_head
    model.save_pretrained(path)


def _edit(path, file, **fields):
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | fields))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (_writer, "a BLIP-2 that writes texts: its Q-Former reads none, and it has no ITM head"),
        (_headless, "has no itm_head, which retrieval needs; take a BLIP-2 for retrieval"),
        (lambda path: _edit(path, "config.json", num_query_tokens=0), "num_query_tokens is 0"),
        (lambda path: _edit(path, "config.json", num_query_tokens="three"), "is no configuration of its type"),
        (lambda path: (path / "processor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda path: [file.unlink() for file in path.glob("*token*")], "has no tokenizer"),
    ],
)
def test_files_that_do_not_fit_are_told(path, tmp_path, broken, told):
    shutil.copytree(path, tmp_path / "model")
    broken(tmp_path / "model")
    for look in [load_backbone] if broken is _headless else [check_company, load_backbone]:
        with pytest.raises(AuroraError) as error:
            look(tmp_path / "model")
        assert told in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_without_its_first_token_is_told(backbone):
    backbone.tokenizer.cls_token = None
    with pytest.raises(AuroraError, match="does not put"):
        blip2._check_tokenizer(backbone.tokenizer, backbone.model.config, "m")


def test_a_text_that_says_image_has_no_number_beyond_the_words(backbone):
    texts = backbone.texts(["a <image> of a dog"])
    assert int(texts.ids.max()) < backbone.model.config.qformer_config.vocab_size
    assert backbone.tokenizer.unk_token_id in texts.ids and torch.isfinite(backbone.encode_text(texts).feature).all()


@torch.no_grad()
def test_another_size_of_pictures(path):
    backbone = load_backbone(path, image_size=64)
    assert backbone.encode_image(torch.zeros(1, 3, 64, 64)).states.shape == (1, 65, VISION_WIDTH)
    assert backbone.view()(Image.new("RGB", (10, 20))).shape == (3, 64, 64)
    with pytest.raises(AuroraError, match="which patches of 8 pixels do not fill"):
        load_backbone(path, image_size=30)

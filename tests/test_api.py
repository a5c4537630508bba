"""The package from Python: every snippet of docs/python.md is run, and what it gives is compared."""

import copy
import datetime
import json
import pickle
import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForQuestionAnswering

import aurora_petl
from aurora_petl import devices
from aurora_petl.backbones import load_backbone
from aurora_petl.recipe import load_recipe
from aurora_petl.search import encoder
from tests.helpers.families import QUERIES, make
from tests.helpers.pictures import draw
from tests.helpers.writers import make as make_writer
from tests.helpers.writers import skip_if_old

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
FEW = {"max_steps": 3, "batch_size": 6, "evaluations": 1}
WORDS = ["a red circle", "blue square", "a green cross " * 20]


@pytest.fixture(scope="module")
def here(tmp_path_factory, folder):
    """A working folder with what the page names."""
    place = tmp_path_factory.mktemp("here")
    (place / "my_photos").symlink_to(folder)
    draw("circle", "red").save(place / "cat.jpg")
    draw("square", "blue").save(place / "dog.jpg")
    backbone = load_backbone("blip-mini")
    config = backbone.model.config
    torch.manual_seed(0)
    BlipForQuestionAnswering(config).save_pretrained(place / "vqa-model")
    backbone.tokenizer.save_pretrained(place / "vqa-model")
    return place


@pytest.fixture(scope="module")
def names(here):
    """What the page's snippets leave behind, run one after the other; their training takes few steps."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5 and blocks[0] in (DOCS.parents[1] / "README.md").read_text("utf-8")
    left: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(aurora_petl, "train", partial(aurora_petl.train, train=FEW))
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"python.md, snippet {number}", "exec"), left)
    return left


@pytest.fixture(scope="module")
def run(names):
    return names["run"]


@pytest.fixture
def pictures(folder):
    return sorted((folder / "images").glob("*.png"))


def test_the_page_says_what_happens(names, here, run, folder):
    assert set(run.metrics["data"]) == {"name", "kind", "train", "validation", "test"}
    assert names["images"].shape == (2, 128) and names["texts"].dtype == np.float32
    assert [type(hit).__name__ for hit in run.rank("x", images=names["images"])] == ["Ranked"] * 2
    assert names["hit"].index in (0, 1) and names["found"].path.resolve().parent == folder.resolve() / "images"
    assert len(names["index"]) == 24 and names["index"].skipped == {}
    assert (
        repr(run).startswith("Model('runs/mine', retrieval, tuned by aurora, on cpu") and not names["untuned"].metrics
    )


def test_vectors_are_those_of_search(run, here, pictures):
    """By another way: one picture at a time through the run's encoder, in other batches."""
    theirs = encoder.load_encoder(str(here / "runs/mine"), "tuned")
    images = run.encode_images(pictures[:5], batch_size=2)
    expected = torch.cat(
        [theirs.pictures(theirs.transform(Image.open(path).convert("RGB"))[None]) for path in pictures[:5]]
    )
    assert np.allclose(images, expected.numpy(), atol=1e-6)
    texts = run.encode_texts(WORDS, convert_to_tensor=True)
    assert torch.allclose(texts, theirs.texts(WORDS), atol=1e-6) and texts.requires_grad is False
    assert np.allclose(np.linalg.norm(images, axis=-1), 1, atol=1e-6)
    assert np.allclose(run.encode_images(Image.open(pictures[2])), images[2], atol=1e-6)
    assert np.allclose(run.encode_texts(WORDS[1]), texts[1], atol=1e-6)
    assert run.encode_images([]).shape == (0, 128)
    scores = run.similarity(texts, images)
    assert np.allclose(scores, texts.numpy() @ images.T, atol=1e-6)
    ranked = run.rank(WORDS[0], images=pictures[:5], k=3)
    assert [hit.index for hit in ranked] == list(np.argsort(-scores[0])[:3])
    assert [hit.score for hit in ranked] == pytest.approx(sorted(scores[0], reverse=True)[:3], abs=1e-5)


def test_items_may_come_in_any_order_of_python(run, pictures):
    """Generators, arrays of names and single items are read as lists are; a single vector is one row."""
    pictures = pictures[:3]
    images, texts = run.encode_images(pictures), run.encode_texts(WORDS)
    for given in (iter(pictures), (Image.open(path) for path in pictures), np.array(list(map(str, pictures)))):
        assert np.allclose(run.encode_images(given), images, atol=1e-6)
    assert np.allclose(run.encode_texts(np.array(WORDS)), texts, atol=1e-6)
    assert np.allclose(run.similarity(texts[0], images), texts[:1] @ images.T, atol=1e-6)
    assert [hit.index for hit in run.rank(pictures[0], texts=WORDS[0])] == [0]  # a text, no list of letters
    lists = run.rank(WORDS[0], images=pictures, k=2, rerank=3)
    assert run.rank(WORDS[0], images=iter(pictures), k=2, rerank=3) == lists


def test_an_index_takes_dates_and_numbers_of_python(names):
    index = names["index"]
    found = index.search("a red circle", k=np.int64(3), after=datetime.date(2001, 1, 1))
    assert [one.path for one in found] == [one.path for one in index.search("a red circle", k=3)] and len(found) == 3
    for day in (datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC), datetime.date(2001, 1, 1), 2001):
        with pytest.raises(aurora_petl.AuroraError, match="holds no picture before 2001-01-01"):
            index.search("a red circle", before=day)


def test_a_copy_and_a_model_in_another_process_give_the_same(run):
    for other in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert np.allclose(other.encode_texts(WORDS), run.encode_texts(WORDS), atol=1e-6)
        assert other.metrics == run.metrics


def test_the_second_stage_orders_the_best(run, here, pictures):
    """Against match logits of one pair at a time, of pictures for a text and of texts for a picture."""
    theirs = encoder.load_encoder(str(here / "runs/mine"), "tuned")
    pixels = [theirs.transform(Image.open(path).convert("RGB"))[None] for path in pictures[:4]]
    similar = run.similarity(run.encode_texts(WORDS), run.encode_images(pictures[:4]))

    def score(text, image):
        return float(theirs.match(pixels[image], [WORDS[text]])) + theirs.beta * similar[text, image]

    found = run.rank(WORDS[0], images=pictures[:4], k=2, rerank=4, batch_size=3)
    expected = sorted(((score(0, image), image) for image in range(4)), reverse=True)[:2]
    assert [(hit.score, hit.index) for hit in found] == [pytest.approx(pair, abs=1e-3) for pair in expected]
    found = run.rank(pictures[1], texts=WORDS, rerank=1)  # at least k
    expected = sorted(((score(text, 1), text) for text in range(3)), reverse=True)
    assert [(hit.score, hit.index) for hit in found] == [pytest.approx(pair, abs=1e-3) for pair in expected]


def test_threads_share_a_model(run, pictures):
    pictures = pictures[:6]
    expected = run.encode_images(pictures), run.encode_texts(WORDS)
    given, threads = [], []

    def work():
        for _ in range(2):
            given.append((run.encode_images(pictures, batch_size=3), run.encode_texts(WORDS, batch_size=2)))

    for _ in range(4):
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(given) == 8
    assert all(np.allclose(own, known, atol=1e-5) for pair in given for own, known in zip(pair, expected, strict=True))


def test_a_picture_may_have_several_vectors(tmp_path, pictures):
    model = aurora_petl.load(make("blip-2", tmp_path / "blip-2"))
    images, texts = model.encode_images(pictures[:3]), model.encode_texts(WORDS)
    assert images.shape == (3, *model.feature_shape) == (3, QUERIES, 16) and texts.shape == (3, 16)
    expected = np.einsum("tp,mvp->tmv", texts, images).max(-1)
    assert np.allclose(model.similarity(texts, images), expected, atol=1e-6)
    assert model.rank(WORDS[1], images=images, k=1)[0].index == expected[1].argmax()
    assert model.rank(pictures[1], images=images, k=1)[0].index == 1


def test_answers_are_those_of_the_task(names, here, monkeypatch):
    monkeypatch.chdir(here)
    model, asked = names["model"], ["what colour is it?", "is it a circle?"]
    model = aurora_petl.load("vqa-model", task="vqa")
    written = model.answer("cat.jpg", asked)
    assert written == [model.answer("cat.jpg", question) for question in asked]
    chosen = model.answer(["cat.jpg", "dog.jpg"], asked, candidates=["yes", "no", "red"], batch_size=1)
    assert set(chosen) <= {"yes", "no", "red"}
    losses = {}
    for answer in ("yes", "no", "red"):
        pixels = model._view(Image.open("dog.jpg").convert("RGB"))
        batch = model.backbone.collate([pixels], asked[1:], [answer], [0], prompt="{question}", longest=35)
        losses[answer] = float(model.backbone.losses(batch, 0.1))
    assert chosen[1] == min(losses, key=losses.get)
    model.recipe, model.folder = load_recipe(None, ["task.name=vqa"]), here  # as of a run
    with pytest.raises(aurora_petl.AuroraError, match=r"answers.json is missing.*give candidates"):
        model.answer("cat.jpg", "what?")
    (here / "answers.json").write_text(json.dumps(["yes", "no", "red"]))
    assert model.answer(["cat.jpg", "dog.jpg"], asked) == chosen


def test_a_model_that_writes_reads_pictures_of_any_shape(tmp_path):
    skip_if_old()
    model = aurora_petl.load(make_writer("smolvlm", tmp_path / "smolvlm"))
    shown = [draw("circle", "red", 40), draw("square", "blue", 60).crop((0, 0, 30, 60))]
    answers = model.answer(shown, ["what colour is it?", "is it a circle?"])
    assert model.task == "vqa" and len(answers) == 2
    assert answers[1] == model.answer(shown[1], "is it a circle?")
    with pytest.raises(aurora_petl.AuroraError, match="writes its answers and cannot choose"):
        model.answer(shown[0], "what?", candidates=["a"])


def opened(**more) -> aurora_petl.Index:
    return aurora_petl.Index.open("my_photos.index", **more)


def closed_picture() -> Image.Image:
    with Image.open("cat.jpg") as picture:
        return picture


def wrong(call, words):
    return pytest.param(call, words, id=words[:40])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        wrong(lambda run: run.answer("cat.jpg", "what?"), "answers no questions; load it with task='vqa'"),
        wrong(lambda run: run.encode_images("cow.jpg"), "cow.jpg: no such picture"),
        wrong(lambda run: run.encode_images([3]), "a picture is 3; give files or pictures of PIL"),
        wrong(lambda run: run.encode_images(3), "3 is neither one item nor a list of them"),
        wrong(lambda run: run.encode_texts(["a", None]), "a text is None; give text"),
        wrong(lambda run: run.encode_images(np.zeros((9, 9, 3))), "a picture is a ndarray; give files"),
        wrong(lambda run: run.encode_images(b"GIF"), "such as Image.fromarray(array) or Image.open(io.BytesIO(data))"),
        wrong(lambda run: run.encode_images("https://a.b/c.jpg"), "'https://a.b/c.jpg' is an address; save"),
        wrong(lambda run: run.encode_images(closed_picture()), "it may be closed: open it anew, or give its file"),
        wrong(lambda run: run.encode_texts(["a"], batch_size=0), "batch_size is 0; it must be a whole number"),
        wrong(lambda run: run.encode_texts(["a"], batch_size="8"), "batch_size is '8'; it must be a whole number"),
        wrong(lambda run: run.similarity(["a"], np.zeros((1, 128))), "holds no vectors; give what encode_images"),
        wrong(lambda run: run.similarity(np.zeros((1, 3)), np.zeros((2, 5))), "queries have 3 numbers each and"),
        wrong(lambda run: run.rank("a", images=np.zeros((2, 5))), "the vectors to rank have 5 numbers each"),
        wrong(lambda run: run.rank("a", texts=["b"], k=None), "k is None; it must be a whole number of at least 1"),
        wrong(lambda run: run.rank("a"), "wants either images or texts"),
        wrong(lambda run: run.rank("a", texts=["b"], k=0), "k is 0; it must be a whole number of at least 1"),
        wrong(lambda run: run.rank("a", texts=["b"], rerank=1), "not two of a kind; leave out rerank"),
        wrong(
            lambda run: run.rank("a", images=np.zeros((1, 128)), rerank=1), "give them in the place of their vectors"
        ),
        wrong(
            lambda run: aurora_petl.load("runs/mine", task="vqa"), "runs/mine was tuned for retrieval; leave out task"
        ),
        wrong(lambda run: aurora_petl.load("runs/mine", image_size=96), "which has its own image_size"),
        wrong(lambda run: aurora_petl.load("no-such-model"), "no model 'no-such-model': it is neither embedded"),
        wrong(lambda run: aurora_petl.load("blip-mini", step=3), "blip-mini is no run of aurora train;"),
        wrong(lambda run: aurora_petl.load("runs/mine", strength="1"), "strength is '1'; it must lie between 0"),
        wrong(lambda run: aurora_petl.load("blip-mini", image_size=(96, 96)), "image_size is a tuple of 2; give the"),
        wrong(lambda run: aurora_petl.load("blip-mini", device="gpu"), "no device 'gpu'; choose one of"),
        wrong(lambda run: aurora_petl.train(model="blip-mini"), "nothing to train on; give data"),
        wrong(lambda run: aurora_petl.train([{"image": "a.jpg"}]), "data is a list of 1; give a name or the path"),
        wrong(lambda run: aurora_petl.train("my_photos", model=run), "model is a Model; give a name or the path"),
        wrong(lambda run: aurora_petl.load(run), "model is a Model; give a name or the path"),
        wrong(lambda run: aurora_petl.load(None), "model is None; give a name or the path"),
        wrong(lambda run: aurora_petl.train("my_photos", out="runs/mine"), "already holds a run"),
        wrong(lambda run: aurora_petl.train("my_photos", lr=1), "there is no field lr"),
        wrong(lambda run: aurora_petl.train("my_photos", train={"lr": 1}), "there is no field train.lr"),
        wrong(lambda run: aurora_petl.train("x", out="runs/mine", resume=True), "resume takes the run's own recipe"),
        wrong(lambda run: aurora_petl.Index.open("my_photos"), "my_photos"),
        wrong(lambda run: aurora_petl.Index.open(None), "out is None; give a name or the path of a folder"),
        wrong(lambda run: aurora_petl.Index.build(["a.png"], "blip-mini"), "folder is a list of 1; give a name"),
        wrong(lambda run: opened(view="x"), "the index has no view 'x'; it has tuned and untuned"),
        wrong(lambda run: opened().search("a", k="3"), "k is '3'; it must be a whole number of at least 1"),
        wrong(lambda run: opened().search("a", rerank=None), "rerank is None; it must be a whole number"),
        wrong(lambda run: opened().search(["a"]), "a picture is a list of 1; give files or pictures of PIL"),
        wrong(lambda run: opened().search(np.zeros(3)), "a picture is a ndarray; give files or pictures of PIL"),
        wrong(lambda run: opened().search(closed_picture()), "(AssertionError); it may be closed: open it anew"),
        wrong(lambda run: opened().search("a", after=[2]), "after a list of 1 is no date; give a year"),
    ],
)
def test_wrong_use_is_one_line(call, words, run, here, monkeypatch):
    monkeypatch.chdir(here)
    with pytest.raises(aurora_petl.AuroraError, match=re.escape(words)) as caught:
        call(run)
    assert "\n" not in str(caught.value)


def test_fields_may_be_what_python_has(monkeypatch, tmp_path):
    """Paths, tuples, sets and numbers of NumPy; the run itself is left out."""
    made = []
    monkeypatch.setattr("aurora_petl.training.train", lambda recipe, *_, **more: made.append(recipe))
    monkeypatch.setattr("aurora_petl.api.load", lambda folder: None)
    train = {"seed": np.int64(3), "learning_rate": np.float32(0.5), "init_from": tmp_path}
    options = {"target_modules": {"value", "query"}}
    aurora_petl.train(tmp_path, out=tmp_path / "run", root=tmp_path, train=train, method_options=options)
    assert (made[0].root, made[0].train.init_from) == (str(tmp_path), str(tmp_path))
    assert (made[0].train.seed, made[0].train.learning_rate) == (3, 0.5)
    assert made[0].method_options["target_modules"] == ["query", "value"]


def test_fields_of_sections_join_the_recipe_s():
    recipe = load_recipe("photos", fields={"train": {"max_steps": 3}, "method_options": {"r": 8}})
    own = load_recipe("photos")
    assert recipe.train.max_steps == 3 and recipe.train.learning_rate == own.train.learning_rate
    assert recipe.method_options == own.method_options | {"r": 8}
    assert load_recipe("photos", fields={"method": "lora", "method_options": {"r": 8}}).method_options == {"r": 8}
    assert load_recipe("photos", fields={"task": {"name": "vqa"}}).task.name == "vqa"


def test_a_device_is_that_of_its_block_and_thread():
    seen = []
    with devices.using("cpu"), pytest.raises(aurora_petl.AuroraError), devices.using("cuda:99"):
        pass
    devices_before = devices._choice.name
    devices._choice.name = "cuda:99"
    try:
        with devices.using("cpu"):
            seen.append(devices.choose().type)
            with devices.using(None):
                seen.append(devices.choose().type)
        with devices.using(torch.device("cpu")):
            seen.append(devices.choose().type)
        with pytest.raises(aurora_petl.AuroraError):
            devices.choose()
    finally:
        devices._choice.name = devices_before
    assert seen == ["cpu"] * 3

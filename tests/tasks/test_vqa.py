"""Question answering against transformers' own modules, brute force and loops written out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BlipForQuestionAnswering

from aurora_petl.backbones import Texts, load_backbone
from aurora_petl.backbones.frames import media_states
from aurora_petl.baselines import apply_method
from aurora_petl.data.media import EvalTransform, PictureFormat
from aurora_petl.data.rows import Question, QuestionDataset
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation.outcome import AnswerOutcome
from aurora_petl.examples import TrainingExamples
from aurora_petl.tasks.settings import VQASettings
from aurora_petl.tasks.vqa import VQA
from tests.helpers.pictures import draw, make_questions

DEC, ENC = 30522, 30523
ROWS = [  # question, answers, weights
    ("what is it?", ["a red apple", "apple"], [0.7, 0.3]),
    ("is there a dog in the picture, or any other animal?", ["no"], [1.0]),
    ("how many?", ["2", "two keys", "a pair"], [0.5, 0.4, 0.1]),
]
CANDIDATES = ["yes", "no", "red apple", "red", "red heart of glass", "2", "egg", "a white leaf"]


@pytest.fixture(scope="module")
def shared():
    """The model as it is, which no test changes."""
    return load_backbone("blip-mini", task="vqa")


@pytest.fixture(scope="module")
def theirs(shared):
    """transformers' model with its own attention and the same weights."""
    config = shared.model.config
    model = BlipForQuestionAnswering(config)
    model.load_state_dict(shared.model.state_dict())
    return model.eval()


@pytest.fixture
def task(shared):
    return VQA(shared)


def pixels(count):
    torch.manual_seed(1)
    return torch.randn(count, 3, 96, 96)


def batch(task, rows=ROWS):
    return task.collate(
        [
            {"pixels": picture, "question": question, "answers": answers, "weights": weights}
            for picture, (question, answers, weights) in zip(pixels(len(rows)), rows, strict=True)
        ]
    )


def asked(found):
    return Texts(found["question_ids"], found["question_mask"])


def alone(model, tokenizer, picture, question, answer, smoothing):
    """The loss of one answer by transformers' modules, nothing padded and the labels set out."""
    ids = tokenizer(question, return_tensors="pt").input_ids
    ids[:, 0] = ENC
    image = model.vision_model(pixel_values=picture[None]).last_hidden_state
    states = model.text_encoder(input_ids=ids, encoder_hidden_states=image).last_hidden_state
    words = tokenizer(answer, return_tensors="pt").input_ids
    words[:, 0] = DEC
    logits = model.text_decoder(input_ids=words, encoder_hidden_states=states).logits
    logs = logits[0, :-1].log_softmax(1)  # at the place of each token but the last, what follows
    labels = words[0, 1:]  # the answer's tokens and [SEP]
    assert len(labels) == len(tokenizer.tokenize(answer)) + 1
    right = logs.gather(1, labels[:, None]).sum()
    return -((1 - smoothing) * right + smoothing * logs.mean(1).sum())


# The loss


@torch.no_grad()
def test_loss_is_the_weighted_sum_of_every_answers_own(task, theirs):
    expected = sum(
        weight * alone(theirs, task.backbone.tokenizer, picture, question, answer, 0.1)
        for picture, (question, answers, weights) in zip(pixels(3), ROWS, strict=True)
        for answer, weight in zip(answers, weights, strict=True)
    )
    assert task.eval()(**batch(task))["loss"].item() == pytest.approx(expected.item() / 3, rel=1e-5)
    task.settings.label_smoothing = 0.0
    plain = alone(theirs, task.backbone.tokenizer, pixels(3)[0], *("what is it?", "apple"), 0.0)
    assert task(**batch(task, [("what is it?", ["apple"], [0.3])]))["loss"].item() == pytest.approx(
        0.3 * plain.item(), rel=1e-5
    )


@torch.no_grad()
def test_loss_of_each_answer_equals_transformers_with_its_reduction_none(task, theirs):
    """Questions of one length, since transformers loses their padding mask; with smoothing as in its configuration."""
    found = batch(task, [("what is it?", ["a red apple", "no"], [0.5, 0.5]), ("how many?", ["2"], [1.0])])
    found["question_mask"][:] = 1
    states = task.backbone.encode_question(asked(found), task.backbone.image_states(found["pixel_values"]))
    answers, mask, which = found["answer_ids"], found["answer_mask"], found["which"]
    rest = Texts(answers, mask), states, found["question_mask"], which
    ours = task.backbone.answer_loss(*rest, label_smoothing=0.1)
    inputs = torch.cat([torch.full_like(answers[:, :1], DEC), answers[:, 1:]], 1)
    out = theirs.text_decoder(
        input_ids=inputs,
        attention_mask=mask,
        encoder_hidden_states=states[which],
        labels=inputs.masked_fill(mask == 0, -100),
        reduction="none",
    )
    assert theirs.text_decoder.label_smoothing == 0.1
    assert torch.allclose(ours, out.loss, rtol=1e-5)
    logits = task.backbone.answer_logits(*rest)
    assert torch.allclose(logits[mask == 1], out.logits[mask == 1], atol=1e-4)


@torch.no_grad()
def test_company_and_padding_change_no_answers_score(task):
    """A question's answers alone, beside longer ones, and padded further: the same to 1e-5."""
    backbone, found = task.backbone, batch(task)
    image = backbone.image_states(found["pixel_values"])

    def losses(ids, mask, image, answers, answers_mask, which):
        states = backbone.encode_question(Texts(ids, mask), image)
        return backbone.answer_loss(Texts(answers, answers_mask), states, mask, which, label_smoothing=0.1)

    names = ("question_ids", "question_mask", "answer_ids", "answer_mask")
    ids, mask, answers, answers_mask = (found[name] for name in names)
    together = losses(ids, mask, image, answers, answers_mask, found["which"])
    padded = [F.pad(each, (0, 7)) for each in (ids, mask, answers, answers_mask)]
    assert torch.allclose(losses(*padded[:2], image, *padded[2:], found["which"]), together, rtol=1e-5, atol=1e-5)
    for place, row in enumerate(found["which"]):
        one, length, words = slice(row, row + 1), mask[row].sum(), answers_mask[place].sum()
        own = answers[place : place + 1, :words]
        single = losses(ids[one, :length], mask[one, :length], image[one], own, torch.ones_like(own), None)
        assert torch.allclose(single[0], together[place], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_token_does_not_see_those_after_it(task):
    found = batch(task, ROWS[:1])
    states = task.backbone.image_states(found["pixel_values"])
    logits = []
    for ids in (found["answer_ids"][:1], found["answer_ids"][:1].clone()):
        if logits:
            ids[0, 3:] = 2000
        answer = Texts(ids, torch.ones_like(ids))
        logits.append(task.backbone.answer_logits(answer, states, torch.ones(1, states.shape[1])))
    assert torch.allclose(logits[0][:, :3], logits[1][:, :3], atol=1e-5)
    assert not torch.allclose(logits[0][:, 3:], logits[1][:, 3:], atol=1e-1)


def test_every_trained_weight_gets_a_gradient_and_gates_are_the_question_encoders():
    backbone = load_backbone("blip-mini", task="vqa")
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 4, "gate": "scale_shift", "context": "batch", "init_weights": False})
    task = VQA(backbone).train()
    task(**batch(task))["loss"].backward()
    trained = dict(task.trained())
    assert all(weight.grad is not None and weight.grad.abs().any() for weight in trained.values())
    assert any("text_decoder" in name and "aurora_P" in name for name in trained)
    gates = {name.split(".")[2] for name in trained if ".gate." in name or ".context." in name}
    assert gates == {"text_encoder"}


def test_context_is_the_batchs_questions_in_training_and_their_bank_afterwards():
    backbone = load_backbone("blip-mini", task="vqa")
    apply_method(backbone, "aurora", {"r": 4, "context": "batch"})
    task = VQA(backbone).train()
    context = backbone.model.text_encoder.encoder.context
    found = batch(task)
    task(**found)
    with torch.no_grad():
        task.eval()
        texts = backbone.text_states(asked(found))[:, 0]
        assert torch.allclose(context.aurora_bank["default"][-3:], texts, atol=1e-5)
        assert torch.equal(backbone.question_context(asked(found)), texts)
        image = backbone.image_states(found["pixel_values"])
        before = backbone.encode_question(asked(found), image)
        context.aurora_eta["default"].fill_(0.5)
        together = backbone.encode_question(asked(found), image)
        weights = (before[:, 0] @ texts.T / texts.shape[1] ** 0.5).softmax(1)
        assert torch.allclose(together[:, 0], before[:, 0] + 0.5 * weights @ texts, atol=1e-4)
        assert torch.equal(together[:, 1:], before[:, 1:])
        single = backbone.encode_question(asked(found).rows(slice(1)), image[:1])
    assert torch.allclose(single, together[:1], atol=1e-5)


def test_marks_that_blip_dropped_are_dropped(task):
    ids = [batch(task, [(text, ["2"], [1.0])])["question_ids"] for text in ('What is "it": (a #1)?', "what is it a 1?")]
    assert torch.equal(*ids)


# Inference


@pytest.fixture
def questions(task):
    """States and mask of three questions of different lengths."""
    found = batch(task)
    with torch.no_grad():
        image = task.backbone.image_states(found["pixel_values"])
        states = task.backbone.encode_question(asked(found), image)
    return states, found["question_mask"]


@torch.no_grad()
def scored(task, theirs, k):
    """Candidates by brute force: each question's every candidate alone, out of the k with the likeliest first token."""
    best = []
    for picture, (question, _, _) in zip(pixels(3), ROWS, strict=True):
        tokenizer = task.backbone.tokenizer
        ids = tokenizer(question, return_tensors="pt").input_ids
        ids[:, 0] = ENC
        image = theirs.vision_model(pixel_values=picture[None]).last_hidden_state
        states = theirs.text_encoder(input_ids=ids, encoder_hidden_states=image).last_hidden_state
        first = theirs.text_decoder(input_ids=torch.tensor([[DEC]]), encoder_hidden_states=states).logits[0, 0]
        begin = [first[tokenizer(text).input_ids[1]].item() for text in CANDIDATES]
        order = sorted(range(len(CANDIDATES)), key=lambda n: (-begin[n], n))[:k]
        losses = {n: alone(theirs, tokenizer, picture, question, CANDIDATES[n], 0.1).item() for n in order}
        best.append(min(losses, key=losses.__getitem__))
    return best


@pytest.mark.parametrize("k", [1, 2, 3, len(CANDIDATES), 100])
def test_rank_picks_what_brute_force_picks(task, theirs, questions, k, monkeypatch):
    monkeypatch.setattr("aurora_petl.backbones.blip.answering.PAIRS", 5)
    candidates = task.backbone.texts(CANDIDATES, 64)
    found = task.backbone.rank_candidates(*questions, candidates, k_test=k, label_smoothing=0.1)
    assert found.tolist() == scored(task, theirs, k)


@torch.no_grad()
def test_generate_is_greedy_and_does_not_mind_company(task, questions):
    states, mask = questions
    written = task.backbone.generate_answers(states, mask, num_beams=1, max_tokens=8)
    for row in range(3):
        own = states[row : row + 1, : mask[row].sum()]
        ids = torch.tensor([[DEC]])
        while ids.shape[1] < 8 and ids[0, -1] != 102:
            logits = task.backbone.answer_logits(Texts(ids, torch.ones_like(ids)), own, torch.ones(own.shape[:2]))
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert written[row] == task.backbone.tokenizer.decode(ids[0, 1:], skip_special_tokens=True)
    assert len({*written}) > 1


@torch.no_grad()
def test_beams_find_a_likelier_answer_than_greed(task, questions):
    states, mask = questions
    beams = task.backbone.generate_answers(states, mask, num_beams=4, max_tokens=8)
    assert (
        beams[0]
        == task.backbone.generate_answers(
            states[:1, : mask[0].sum()], mask[:1, : mask[0].sum()], num_beams=4, max_tokens=8
        )[0]
    )
    assert beams != task.backbone.generate_answers(states, mask, num_beams=1, max_tokens=8)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return make_questions(tmp_path_factory.mktemp("questions") / "colours")


def test_a_split_is_answered_in_its_order_and_a_picture_encoded_once(task, colours, monkeypatch):
    test, seen = colours.split("test"), []
    encode = task.backbone.image_states
    monkeypatch.setattr(task.backbone, "image_states", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr("aurora_petl.tasks.vqa.QUESTIONS", 5)
    found = task.train().evaluate(test)
    assert task.training and sum(seen) == 7  # 6 pictures, one of them in two batches
    shuffled = QuestionDataset(test.name, test.items[::-1], test.files, candidates=test.candidates)
    assert task.evaluate(shuffled).answers == found.answers[::-1]
    right = [float(answer == question.answers[0]) for answer, question in zip(found.answers, test, strict=True)]
    assert found.scores == right and found.metrics["accuracy"] == pytest.approx(100 * sum(right) / 12)
    assert list(found.metrics) == ["accuracy", "yes/no", "other"] and set(found.answers) <= set(colours.candidates)


def test_a_split_without_answers_has_no_scores_but_an_upload(task, colours):
    bare = [Question(item.image, item.question, (), (), item.id, "test", item.line) for item in colours.split("test")]
    dataset = QuestionDataset("bare", bare, colours.files)
    with pytest.raises(AuroraError, match="bare has no list of answers to rank; set task.inference=generate"):
        task.evaluate(dataset)
    task.settings = VQASettings(inference="generate", num_beams=2, max_answer_tokens=4)
    found = task.evaluate(dataset)
    assert found.metrics == {} and found.scores == [None] * 12
    rows = task.upload(dataset, found)
    assert [row["question_id"] for row in rows] == [int(item.id) for item in bare]
    assert [row["answer"] for row in rows] == found.answers and all(found.answers)


def test_what_would_stop_a_run_is_found_before(colours, pictures):
    settings = VQASettings()
    VQA.check(settings, colours)
    with pytest.raises(AuroraError, match="shapes holds captions, but task vqa is about questions"):
        VQA.check(settings, pictures)
    bare = Question("images/0.png", "why?", (), (), "0", "train", 4)
    with pytest.raises(AuroraError, match=r"q\.json, row 4: images/0\.png: no answer to 'why\?'; questions of"):
        VQA.check(settings, QuestionDataset("x", [bare], colours.files, "q.json", candidates=("yes",)))
    with pytest.raises(AuroraError, match="no list of answers to rank"):
        VQA.check(VQASettings(inference="rank"), QuestionDataset("x", colours.items, colours.files))


def test_answers_that_writing_would_cut_are_told(colours, capsys):
    VQA.check(VQASettings(), colours)
    long = [replace(row, answers=("word " * 40,), weights=(1.0,)) for row in colours]
    dataset = replace(colours, items=long)
    VQA.check(VQASettings(inference="rank"), dataset)
    assert capsys.readouterr().err == ""
    VQA.check(VQASettings(), dataset)
    assert "48 of 48 answers have more than 10 words, and a model that writes" in (said := capsys.readouterr().err)
    assert "set task.max_answer_tokens, like 80" in said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inference": "guess"}, "task.inference is 'guess'; choose rank or generate"),
        ({"k_test": 0}, "task.k_test is 0; it must lie between 1 and 1000000"),
        ({"frames": -1}, "task.frames is -1; it must lie between 0 and 1024"),
    ],
)
def test_settings_say_what_is_wrong(fields, message):
    with pytest.raises(AuroraError) as caught:
        VQASettings(**fields)
    assert str(caught.value) == message


# Clips


class Still(QuestionDataset):
    """Clips in which nothing moves."""

    def frames(self, index: int, count: int, rng=None, least: int = 0) -> list[Image.Image]:
        return [draw("triangle", "green")] * count


def test_frames_of_a_training_clip_are_seen_alike(task):
    item = Question("0.mp4", "what colour is it?", ("green",), (1.0,), "0", "train", 1)
    task.settings = VQASettings(frames=3)
    examples = TrainingExamples(task, Still("clips", [item], None, clips=True), seed=0, augment=True, flip=True)
    views = []
    for epoch in (0, 1, 0):
        views.append(examples[epoch, 0]["pixels"])
        assert views[-1].shape == (3, 3, 96, 96) and torch.equal(views[-1], views[-1][:1].expand(3, -1, -1, -1))
    assert torch.equal(views[0], views[2]) and not torch.equal(views[0], views[1])


class Clips(QuestionDataset):
    """Every row is a clip whose frames show its colour in other shapes."""

    def frames(self, index: int, count: int, rng=None, least: int = 0) -> list[Image.Image]:
        self.asked = [*getattr(self, "asked", []), (index, count, rng is not None)]
        colour = ("red", "blue")[index % 2]
        return [draw(shape, colour) for shape in ("circle", "square", "cross")[:count]]


def test_frames_are_encoded_as_pictures_and_fused_together(task):
    items = [Question(f"{n}.mp4", "what colour is it?", ("red",), (1.0,), str(n), "test", n) for n in range(3)]
    clips = Clips("clips", items, None, clips=True, candidates=("red", "blue"))
    with pytest.raises(AuroraError, match="clips holds clips; say how many frames .* task.frames=8"):
        task.evaluate(clips)
    task.settings = VQASettings(frames=3, test_frames=2)
    found = task.evaluate(clips)
    assert isinstance(found, AnswerOutcome) and clips.asked == [(0, 2, False), (1, 2, False), (2, 2, False)]
    view = EvalTransform(PictureFormat(96))
    clip = torch.stack([view(frame) for frame in clips.frames(0, 2)])
    with torch.no_grad():
        states = media_states(task.backbone, torch.stack([clip, clip.flip(0)]))
        frames = task.backbone.image_states(clip)
    assert states.shape[:2] == (2, 2 * frames.shape[1])  # those of both frames follow each other
    for found_states, order in zip(states, (frames, frames.flip(0)), strict=True):
        assert torch.allclose(found_states, order.flatten(0, 1), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(media_states(task.backbone, clip), frames)
    rows = [{"pixels": clip, "question": "how many?", "answers": ["2"], "weights": [1.0]}] * 2
    assert task.collate(rows)["pixel_values"].shape == (2, 2, 3, 96, 96)
    assert torch.isfinite(task(**task.collate(rows))["loss"])

"""The two-stage evaluation against scoring each pair by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method
from aurora_petl.data import load_dataset
from aurora_petl.evaluation import rerank as engine
from aurora_petl.evaluation.features import extract
from aurora_petl.evaluation.rerank import rerank
from aurora_petl.evaluation.scores import BELOW
from tests.helpers.ranks import run_ranks


@pytest.fixture
def few(pictures):
    return pictures.split("validation")


@pytest.fixture
def tuned(backbone):
    """An adapter with everything on, off its start."""
    return tune(backbone)


def tune(backbone):
    torch.manual_seed(0)
    apply_method(
        backbone, "aurora", {"r": 4, "context": "batch", "gate": "scale_shift", "init_weights": False, "scale": 0.1}
    )
    for name, bank in backbone.module.named_buffers():
        if "bank" in name:
            bank.normal_()
    backbone.module.eval()
    return backbone


@torch.no_grad()
def pair_by_pair(backbone, features):
    """(images, texts) ITM match logits, one unpadded text and one picture at a time."""
    scores = np.zeros((len(features.image_ids), len(features.text_ids)))
    for image in range(scores.shape[0]):
        states = features.states(image, image + 1)
        for text, words in enumerate(features.texts):
            scores[image, text] = backbone.match(backbone.texts([words], 35), states)[0, 1]
    return scores


@pytest.mark.parametrize(("tokens", "budget"), [(4096, 2**28), (20, 2**28), (4096, 1)])
def test_scores_equal_pairs_alone(tuned, few, monkeypatch, tokens, budget):
    monkeypatch.setattr(engine, "CALL_TOKENS", tokens)
    monkeypatch.setattr(engine, "BLOCK_BUDGET", budget)
    features = extract(tuned, few, batch_size=4)
    scores = rerank(tuned, features, k_test=1000, beta=0.5)
    expected = pair_by_pair(tuned, features) + 0.5 * scores.similarity
    assert np.abs(scores.image_to_text - expected).max() < 1e-4
    assert np.array_equal(scores.text_to_image, scores.image_to_text.T)


def test_a_picture_is_projected_once_and_a_pair_scored_once(backbone, few, monkeypatch):
    monkeypatch.setattr(engine, "CALL_TOKENS", 20)  # every picture meets its texts in several calls
    backbone.model.eval()
    features = extract(backbone, few)
    projected, scored = [], []
    key = backbone.model.text_encoder.encoder.layer[2].crossattention.self.key
    match = backbone.match
    key.register_forward_hook(lambda module, args, output: projected.append(len(args[0])))

    def counted(texts, *rest, **more):
        scored.append(len(texts))
        return match(texts, *rest, **more)

    monkeypatch.setattr(backbone, "match", counted)
    scores = rerank(backbone, features, k_test=3)
    wanted = (scores.image_to_text > -BELOW / 2) | (scores.text_to_image.T > -BELOW / 2)
    assert sum(projected) == wanted.any(1).sum() and sum(scored) == wanted.sum() and len(scored) > len(few)


def test_a_backbone_that_shares_nothing_scores_the_same(backbone, few, monkeypatch):
    backbone.model.eval()
    features = extract(backbone, few)
    expected = rerank(backbone, features, k_test=3)
    monkeypatch.setattr(backbone, "shares", False)
    assert np.allclose(rerank(backbone, features, k_test=3).image_to_text, expected.image_to_text, atol=1e-4)


@pytest.mark.parametrize("budget", [2**28, 1])
def test_padding_is_not_computed(tuned, few, monkeypatch, budget):
    monkeypatch.setattr(engine, "BEGUN_BUDGET", budget)  # texts' first states held, or formed in each call
    items = [replace(item, captions=(item.captions[0] + " on white" * n,)) for n, item in enumerate(few.items)]
    few = replace(few, items=items)
    features = extract(tuned, few)
    lengths = features.tokens.lengths()
    assert len(lengths.unique()) == len(few)
    rows = []
    layer = tuned.model.text_encoder.encoder.layer[1].crossattention.self.query
    layer.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0] * args[0].shape[1]))
    scores = rerank(tuned, features, k_test=1000)
    assert sum(rows) == len(few) * lengths.sum() and len(rows) == 1
    assert np.abs(scores.image_to_text - pair_by_pair(tuned, features)).max() < 1e-5


def test_only_candidates_are_rescored_and_stand_above_the_rest(backbone, few):
    backbone.model.eval()
    features = extract(backbone, few)
    scores = rerank(backbone, features, k_test=2)
    for matrix, similarity in ((scores.image_to_text, scores.similarity), (scores.text_to_image, scores.similarity.T)):
        for row, itc in zip(matrix, similarity, strict=True):
            best = set(np.argsort(-itc)[:2])
            assert set(np.flatnonzero(row > -BELOW / 2)) == best
            rest = [i for i in range(len(row)) if i not in best]
            assert np.allclose(row[rest], itc[rest] - BELOW, atol=1e-3)


def test_without_candidates_the_itc_order_stands(backbone, few):
    backbone.model.eval()
    features = extract(backbone, few)
    scores = rerank(backbone, features, k_test=0)
    assert scores.metrics(features) == scores.by_similarity().metrics(features)


def test_rescored_lists_are_in_float32(tuned, few):
    exact = rerank(tuned, extract(tuned, few), k_test=1000)
    with torch.autocast("cpu", torch.bfloat16):
        features = extract(tuned, few)
        rough, best, all_again = (rerank(tuned, features, k_test=1000, rescore=n) for n in (0, 1, 1000))
    error = np.abs(rough.image_to_text - exact.image_to_text)
    assert error.max() > 1e-3 and np.abs(all_again.image_to_text - exact.image_to_text).max() < 1e-4
    first = best.image_to_text != rough.image_to_text
    assert 0 < first.sum() < first.size and np.abs((best.image_to_text - exact.image_to_text)[first]).max() < 1e-4


def test_a_killed_rerank_goes_on_where_it_stood(tuned, few, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CALL_TOKENS", 20)
    monkeypatch.setattr(engine, "RECORD_SECONDS", 0.0)
    features = extract(tuned, few)
    expected = rerank(tuned, features, k_test=1000)
    match, calls = tuned.match, []

    def counted(*args, **more):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return match(*args, **more)

    monkeypatch.setattr(tuned, "match", counted)
    with pytest.raises(KeyboardInterrupt):
        rerank(tuned, features, k_test=1000, resume=tmp_path / "scores")
    again = rerank(tuned, features, k_test=1000, resume=tmp_path / "scores")
    whole = len(calls)
    assert np.array_equal(again.image_to_text, expected.image_to_text)
    rerank(tuned, features, k_test=1000, resume=tmp_path / "scores")
    assert len(calls) == whole  # all is known
    rerank(tuned, features, k_test=2, resume=tmp_path / "scores")
    assert len(calls) > whole  # other pairs are not


def work(rank, result, folder):
    backbone = tune(load_backbone("blip-mini"))
    scores = rerank(backbone, extract(backbone, load_dataset(folder).split("validation")), k_test=3)
    np.save(f"{result}/{rank}.npy", scores.image_to_text)


def test_two_ranks_share_the_work_and_end_with_all_scores(folder, tuned, few, tmp_path):
    expected = rerank(tuned, extract(tuned, few), k_test=3).image_to_text
    run_ranks(work, str(tmp_path), folder)
    for rank in range(2):
        assert np.allclose(np.load(tmp_path / f"{rank}.npy"), expected, atol=1e-4)

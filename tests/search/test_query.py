"""Queries in memory, against similarities and matching scores that are computed pair by pair."""

import os

import numpy as np
import pytest
import torch

from aurora_petl.data.media import EvalTransform, PictureFormat, load_image
from aurora_petl.errors import AuroraError
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher, find_index
from aurora_petl.training import load_run
from tests.helpers.pictures import draw


@pytest.fixture(scope="module")
def searcher(library):
    return Searcher(library)


@pytest.fixture(scope="module")
def model(run):
    _, backbone = load_run(run)
    backbone.module.eval()
    return backbone


@torch.no_grad()
def similarity(model, folder, paths, text):
    transform = EvalTransform(PictureFormat(96))
    own = model.encode_text(model.texts([text], 35)).feature[0]
    images = [model.encode_image(transform(load_image(folder / p))[None]).feature[0] for p in paths]
    return np.array([float(image @ own) for image in images])


@torch.no_grad()
def match(model, image, text):
    states = model.encode_image(EvalTransform(PictureFormat(96))(image)[None]).states
    return float(model.match(model.texts([text], 35), states)[0, 1])


def test_words_find_the_most_similar_pictures(searcher, library, folder, model):
    paths = [picture.path for picture in library.pictures]
    expected = similarity(model, folder, paths, "a red circle")
    found = searcher.search("a red circle", 24)
    scores = np.array([hit.score for hit in found])
    assert sorted(hit.row for hit in found) == list(range(24)) and (np.diff(scores) <= 0).all()
    assert np.abs(scores - expected[[hit.row for hit in found]]).max() < 2e-3
    assert all(hit.what == paths[hit.row] for hit in found)
    assert searcher.search("a red circle", 5) == found[:5]


def test_a_picture_finds_itself(searcher, library):
    for row in (2, 17):
        best = searcher.search(load_image(library.path(row)), 3)[0]
        assert best.row == row and best.score == pytest.approx(1, abs=2e-3)


def test_reranked_by_words(searcher, library, folder, model):
    candidates = searcher.search("a blue square", 6)
    found = searcher.search("a blue square", 4, rerank=6)
    logits = {hit.row: match(model, load_image(folder / hit.what), "a blue square") for hit in candidates}
    best = sorted(logits, key=lambda row: -logits[row])[:4]
    assert [hit.row for hit in found] == best
    assert [hit.score for hit in found] == pytest.approx([logits[row] for row in best], abs=1e-4)


def test_reranked_with_the_recipes_weight_of_the_similarity(library):
    searcher = Searcher(library)
    searcher.encoder.beta = 20.0  # of the searcher's own encoder: views are loaded anew
    similarity = {hit.row: hit.score for hit in searcher.search("a blue square", 6)}
    logit = {hit.row: hit.score for hit in Searcher(library).search("a blue square", 6, rerank=6)}
    found = searcher.search("a blue square", 6, rerank=6)
    assert [hit.score for hit in found] == pytest.approx(
        sorted((logit[row] + 20 * similarity[row] for row in logit), reverse=True), abs=1e-3
    )
    assert searcher.scored_by(4, 6) == "ITM match logit + 20 * ITC similarity of the 6 best by ITC"


def test_captions_of_a_picture_reranked_or_not(searcher, library, model):
    picture = draw("triangle", "green")
    plain = searcher.search(picture, 5, texts=True)
    assert all(hit.what == library.texts[hit.row] for hit in plain)
    found = searcher.search(picture, 2, texts=True, rerank=5)
    logits = {hit.what: match(model, picture, hit.what) for hit in plain}
    best = sorted(logits, key=lambda text: -logits[text])[:2]
    assert [hit.what for hit in found] == best
    assert [hit.score for hit in found] == pytest.approx([logits[text] for text in best], abs=1e-4)


def test_the_untuned_view_has_scores_of_its_own(searcher, library, folder, backbone):
    backbone.model.eval()
    hit = Searcher(library, "untuned").search("a red circle", 1)[0]
    assert hit.score == pytest.approx(similarity(backbone, folder, [hit.what], "a red circle")[0], abs=2e-3)
    tuned = {found.row: found.score for found in searcher.search("a red circle", 24)}
    assert abs(tuned[hit.row] - hit.score) > 0.01


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("", {}, "the query is empty"),
        ("  ", {}, "the query is empty"),
        ("a \ud83d", {}, "the query .* is not UTF-8; write it anew"),
        ("caf\udce9", {}, "the query .* is not UTF-8; write it anew"),
        ("x", {"k": 0}, "k is 0; it must be at least 1"),
        ("x", {"rerank": -1}, "rerank is -1; it must be at least 0"),
        ("x", {"texts": True}, "captions are found by a picture"),
        (draw("cross", "red"), {"rerank": 5}, "ITM scores a picture with a text, not two pictures"),
    ],
)
def test_wrong_queries(query, options, message, searcher):
    with pytest.raises(AuroraError, match=message):
        searcher.search(query, **options)


def test_an_index_without_captions(album):
    (album / "captions.jsonl").unlink()
    build_index(album, album.with_suffix(".index"), "blip-mini", progress=False)
    with pytest.raises(AuroraError, match=r"album.index holds no captions; run aurora index when .*album has some"):
        Searcher(Library(album.with_suffix(".index"))).search(draw("cross", "red"), texts=True)


def test_a_picture_that_has_changed_is_not_rescored(album):
    out = album.with_suffix(".index")
    build_index(album, out, "blip-mini", progress=False)
    searcher = Searcher(Library(out))
    os.utime(album / "images/1.png", ns=(1, 1))  # the content counts
    draw("cross", "red").save(album / "images/0.png")
    with pytest.raises(AuroraError, match="images/0.png has changed since it was indexed; run aurora index again"):
        searcher.search("a red circle", 10, rerank=10)
    assert searcher.picture(1).size == (96, 96)


def test_pictures_that_are_gone_are_not_found(album):
    out = album.with_suffix(".index")
    build_index(album, out, "blip-mini", progress=False)
    before = best(Searcher(Library(out)), 10)
    for name in before[:4]:
        (album / name).unlink()
    searcher = Searcher(Library(out))
    assert best(searcher, 2) == before[4:6] and searcher.library.gone == set(before[:4])
    assert best(searcher, 10) == before[4:]
    assert set(best(searcher, 10, rerank=10)) == set(before[4:])
    for name in before[4:]:
        (album / name).unlink()
    with pytest.raises(AuroraError, match="album holds none of the pictures any more; put them back"):
        best(searcher, 2)


def best(searcher, k, **options):
    return [hit.what for hit in searcher.search("a red circle", k, **options)]


def test_the_only_index_here_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AuroraError, match="no index here; make one with aurora index FOLDER --model MODEL"):
        find_index(None)
    (tmp_path / "a.index").mkdir()
    assert find_index(None).name == "a.index" and find_index(tmp_path) == tmp_path
    (tmp_path / "b.index").mkdir()
    with pytest.raises(AuroraError, match="2 indexes here; name one with --index: a.index, b.index"):
        find_index(None)

"""Which queries the gallery shows, and with which hits."""

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_petl.backbones import Texts
from aurora_petl.evaluation.features import Features
from aurora_petl.evaluation.outcome import RetrievalOutcome
from aurora_petl.report import gallery

from ..helpers.scores import Crafted

IDS = ["a", "b", "b", "c"]


@pytest.fixture
def split(pictures):
    """Six pictures with two texts each."""
    return pictures.split("test")


@pytest.fixture
def features(split):
    images = [item.id for item in split]
    texts = [(item.id, caption) for item in split for caption in item.captions]
    nothing = torch.zeros(0)
    return Features(
        nothing,
        nothing,
        Texts(nothing, nothing),
        images,
        [own for own, _ in texts],
        [text for _, text in texts],
        nothing,
        range(len(images)),
    )


def ranked(queries, items, ranks):
    """Scores that put the best right item of each query at its rank, from 0, and its other right items last."""
    scores = np.empty((len(queries), len(items)))
    for row, (own, rank) in enumerate(zip(queries, ranks, strict=True)):
        right = [n for n, name in enumerate(items) if name == own]
        order = [n for n, name in enumerate(items) if name != own]
        order.insert(rank, right[0])
        scores[row, [*order, *right[1:]]] = -np.arange(len(items))
    return scores


def scores(features, texts, images):
    text_to_image = ranked(features.text_ids, features.image_ids, texts)
    image_to_text = ranked(features.image_ids, features.text_ids, images)
    return Crafted(image_to_text, text_to_image)


@pytest.fixture
def shown(split, features, tmp_path, monkeypatch):
    """The queries that the gallery of crafted scores draws, and its file."""
    #       spread: 0 and 11; 0 gains most, but is shown already; 3 gains 5/6, 8 gains 2/3, 5 gains 1/2
    before = scores(features, [5, 1, 0, 5, 1, 1, 2, 0, 2, 0, 5, 3], [0, 9, 3, 1, 4, 0])
    after = scores(features, [0, 1, 0, 0, 2, 0, 1, 5, 0, 0, 4, 4], [0, 8, 2, 1, 0, 7])
    drawn, draw = [], gallery.query_gallery
    monkeypatch.setattr(gallery, "query_gallery", lambda path, queries: drawn.extend(queries) or draw(path, queries))
    path = tmp_path / "gallery.png"
    outcomes = (RetrievalOutcome(order, features, split.items) for order in (before, after))
    gallery.before_and_after(path, split, *outcomes, texts=4, images=2)
    return drawn, path


def test_half_are_spread_and_half_gained_most(shown, features, split):
    drawn, _ = shown
    assert [query.text for query in drawn] == [features.texts[row] for row in (0, 11, 3, 8)] + [None] * 2
    assert [query.image and query.image.tobytes() for query in drawn] == [None] * 4 + [
        split.image(row).tobytes() for row in (0, 4)
    ]


def test_hits_are_the_top_five_with_the_right_ones_marked(shown, features, split):
    drawn, _ = shown

    def marks(hits):
        return [hit.correct for hit in hits]

    def at(rank):
        return [n == rank for n in range(5)]

    assert [(marks(query.before), marks(query.after)) for query in drawn] == [
        (at(5), at(0)),  # before, the right picture is the last of six and not shown
        (at(3), at(4)),
        (at(5), at(0)),
        (at(2), at(0)),
        (at(0), at(0)),
        (at(4), at(0)),
    ]
    assert all([hit.score for hit in hits] == [0, -1, -2, -3, -4] for q in drawn for hits in (q.before, q.after))
    text, picture = drawn[2], drawn[5]
    assert text.after[0].image.tobytes() == split.image(1).tobytes() and text.after[0].text is None
    assert [hit.text for hit in text.before] == [None] * 5
    own = {row for row, name in enumerate(features.text_ids) if name == features.image_ids[4]}
    assert picture.after[0].text == features.texts[min(own)] and picture.after[0].image is None
    assert [hit.text for hit in picture.after[1:]] == [
        text for row, text in enumerate(features.texts) if row not in own
    ][:4]


def test_it_is_a_picture(shown):
    _, path = shown
    with Image.open(path) as opened:
        assert opened.format == "PNG" and min(opened.size) > 400
        assert np.asarray(opened).std() > 5
    assert [file.name for file in path.parent.iterdir()] == ["gallery.png"]


def test_few_queries_are_shown_once_each():
    assert gallery._choose(np.full(3, 2), np.full(3, 2), 8) == [0, 1, 2]
    assert gallery._choose(np.array([3]), np.array([1]), 4) == [0]

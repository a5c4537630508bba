"""Scores by blocks against their definition on whole matrices, ties among them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_petl.backbones import Texts
from aurora_petl.evaluation import scores as module
from aurora_petl.evaluation.features import Features
from aurora_petl.evaluation.recall import ranks_of
from aurora_petl.evaluation.scores import BELOW, Scores, Similarity, best_of, candidates, scored

from ..helpers.scores import Known


def split(image_ids, text_ids):
    nothing = torch.zeros(0)
    texts = Texts(nothing, nothing)
    return Features(nothing, nothing, texts, image_ids, text_ids, text_ids, nothing, range(len(image_ids)))


def best(rows, k):
    """Mask of the k best of every row, of equals the first."""
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    mask = np.zeros(rows.shape, bool)
    np.put_along_axis(mask, order, True, 1)
    return mask


@st.composite
def cases(draw):
    """Matrices with ties, near ones that fall together once `BELOW` is taken off among them; what a block holds."""
    pictures, texts = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    step = draw(st.sampled_from([0.5, 0.0002, 1e-8]))
    near = (rng.integers(-3, 4, (pictures, texts)) * step).astype(np.float32)
    logits = rng.integers(-3, 4, (pictures, texts)).astype(np.float32)
    names = rng.integers(0, max(1, pictures // 2) + 1, pictures)  # pictures may share an id
    own = np.concatenate([np.arange(pictures), rng.integers(0, pictures, texts)])[:texts]
    image_ids = [str(name) for name in names]
    text_ids = [image_ids[place] for place in own]
    image_ids = [name if name in text_ids else text_ids[0] for name in image_ids]
    k, rescore = draw(st.integers(1, 14)), draw(st.integers(1, 5))
    return near, logits, split(image_ids, text_ids), k, rescore, draw(st.sampled_from([1, 20, 10**6]))


@given(cases())
def test_blocks_give_what_whole_matrices_do(case):
    near, logits, features, k, rescore, block = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        beta = 0.3
        wanted_rows, wanted_columns = best(near, k), best(near.T, k).T
        value = logits + np.float32(beta) * near
        below = near - np.float32(BELOW)
        image_to_text, text_to_image = np.where(wanted_rows, value, below), np.where(wanted_columns, value, below).T

        own = candidates(Known(near), k)
        assert np.array_equal(np.stack([own.image, own.text]), np.stack(np.nonzero(wanted_rows | wanted_columns)))
        assert np.array_equal(own.of_image, wanted_rows[own.image, own.text])
        assert np.array_equal(own.of_text, wanted_columns[own.image, own.text])
        assert np.array_equal(own.near, near[own.image, own.text])
        own = scored(own, logits[own.image, own.text], beta)
        found = Scores(Known(near), own)
        assert np.array_equal(found.image_to_text, image_to_text) and np.array_equal(found.text_to_image, text_to_image)
        for scores, matrices in (
            (found, (image_to_text, text_to_image)),
            (found.by_similarity(), (near, near.T)),
        ):
            ranks = scores.ranks(features)
            assert np.array_equal(ranks.texts, ranks_of(matrices[0], features.image_ids, features.text_ids))
            assert np.array_equal(ranks.images, ranks_of(matrices[1], features.text_ids, features.image_ids))
            for place, matrix in zip(scores.first(), matrices, strict=True):
                assert np.array_equal(place, matrix.argmax(1))
            asked = [*range(0, len(near), 2)], [*range(0, near.shape[1], 3)]
            for rows, matrix, which in zip(scores.rows(*asked), matrices, asked, strict=True):
                assert np.array_equal(rows, matrix[which])

        again_rows = best(np.where(wanted_rows, value, -np.inf), rescore) & wanted_rows
        again_columns = best(np.where(wanted_columns, value, -np.inf).T, rescore).T & wanted_columns
        assert np.array_equal(best_of(own, rescore), (again_rows | again_columns)[own.image, own.text])


def test_similarity_is_that_of_the_features_whatever_the_blocks(monkeypatch):
    torch.manual_seed(0)
    for image in (torch.randn(7, 16), torch.randn(7, 3, 16)):
        near = Similarity(image, torch.randn(5, 16))
        whole = Scores(near).similarity
        monkeypatch.setattr(module, "BLOCK", 10)
        assert [first for first, _ in near.blocks()] == [0, 2, 4, 6]
        assert np.allclose(Scores(near).similarity, whole, atol=1e-6)
        assert np.array_equal(Scores(near).similarity, Scores(near).similarity)
        monkeypatch.undo()


def test_scores_that_are_not_numbers_and_queries_without_an_answer_are_refused():
    near = np.array([[np.nan, 1.0]], np.float32)
    with pytest.raises(ValueError, match="NaN"):
        Scores(Known(near)).ranks(split(["a"], ["a", "a"]))
    with pytest.raises(ValueError, match="query 'b' has no right item"):
        Scores(Known(near)).ranks(split(["a"], ["a", "b"]))

"""Similarity of features against its definition, one pair after the other."""

import pytest
import torch
import torch.nn.functional as F

from aurora_petl.backbones import base, similarity


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("products", [1, 50, 10**9])
@pytest.mark.parametrize(("of_query", "of_item"), [((), ()), ((), (3,)), ((3,), ()), ((3,), (3,))])
def test_similarity_is_that_of_each_pair(of_query, of_item, products, monkeypatch):
    """However many products are formed at once."""
    monkeypatch.setattr(base, "PRODUCTS", products)
    torch.manual_seed(0)
    queries, items = unit(5, *of_query, 8), unit(7, *of_item, 8)
    found = similarity(queries, items)
    assert found.shape == (5, 7)
    for row, query in enumerate(queries):
        for column, item in enumerate(items):
            products_of_pair = query.reshape(-1, 8) @ item.reshape(-1, 8).T
            expected = products_of_pair.diag().mean() if of_query and of_item else products_of_pair.max()
            assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_gradient_reaches_the_nearest_vector_alone():
    text, picture = torch.eye(2)[:1], torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    similarity(text, picture).sum().backward()
    assert torch.equal(picture.grad, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))


def test_of_none_there_are_none():
    assert similarity(unit(0, 8), unit(7, 3, 8)).shape == (0, 7)
    assert similarity(unit(5, 8), unit(0, 3, 8)).shape == (5, 0)

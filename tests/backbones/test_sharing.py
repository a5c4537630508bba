"""Seats of texts that meet few pictures: those that nobody looked at hold every text, at its own picture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_petl.backbones import sharing
from aurora_petl.backbones.sharing import Sharing, _share_unread, share


def check(sharing: Sharing, which: torch.Tensor, pictures: int) -> None:
    rows = torch.arange(pictures) if sharing.rows is None else sharing.rows
    assert len(set(sharing.seats.tolist())) == len(which)  # a seat for each
    assert torch.equal(rows[sharing.seats // sharing.size], which)


@given(
    st.integers(1, 12).flatmap(
        lambda pictures: st.tuples(
            st.just(pictures),
            st.integers(0, 2),
            st.lists(st.integers(0, pictures - 1), min_size=1, max_size=40),
        )
    ),
    st.sampled_from([1, 20, 600]),
    st.sampled_from([1, 16]),
)
def test_every_text_has_a_seat_at_its_picture(drawn, picture_tokens, text_tokens):
    pictures, certain, more = drawn
    which = torch.tensor([*list(range(pictures)) * certain, *more])
    found = _share_unread(which, pictures, picture_tokens, text_tokens, certain)
    check(found, which, pictures)
    check(share(which, pictures, picture_tokens, text_tokens), which, pictures)


def test_the_number_of_rows_depends_on_counts_alone():
    """Batches of 16 pairs with a hard negative each way: 18 rows at 577 tokens a picture, whatever was drawn."""
    own = torch.arange(16)
    for drawn in (own.flip(0), torch.zeros(16, dtype=torch.long), torch.randint(0, 16, (16,))):
        found = _share_unread(torch.cat([own, own, drawn]), 16, 577, 16, 2)
        assert (len(found.rows), found.size) == (18, 7)


@pytest.mark.parametrize("gradient", [True, False])
def test_training_in_bfloat16_on_a_cpu_attends_in_float32(gradient, monkeypatch):
    kinds = []

    def attention(query, key, value, *rest):
        narrowed = torch.mm(query[0, 0], key[0, 0].mT).dtype  # what autocast makes of an operation here
        kinds.append((query.dtype, narrowed))
        return value

    monkeypatch.setattr(sharing.F, "scaled_dot_product_attention", attention)
    states = torch.randn(2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradient):
        assert sharing.attend(states, states, states, 2).dtype == torch.bfloat16
    assert kinds == [(torch.float32, torch.float32) if gradient else (torch.bfloat16, torch.bfloat16)]

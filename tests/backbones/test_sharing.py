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
@pytest.mark.parametrize("is_fast", [True, False])
def test_training_in_bfloat16_attends_in_float32_where_a_cpu_does_not_compute_in_it_or_keys_are_many(
    is_fast, gradient, monkeypatch
):
    kinds = []

    def attention(query, key, value, *rest):
        narrowed = torch.mm(query[0, 0], key[0, 0].mT).dtype  # what autocast makes of an operation here
        kinds.append((query.dtype, narrowed))
        return value

    monkeypatch.setattr(sharing.F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(sharing, "CPU_IS_FAST", is_fast)
    monkeypatch.setattr(sharing, "LONGEST", 4)
    states = torch.randn(2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradient):
        assert sharing.attend(states, states, states, 2).dtype == torch.bfloat16
    assert kinds == [(torch.float32, torch.float32) if gradient else (torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_training_in_bfloat16_on_a_cpu_that_computes_in_it_is_as_exact_as_plain_products(autocast, masked, monkeypatch):
    """And keeps one table of probabilities for the backward pass, in bfloat16, and no copy of the inputs in float32."""
    monkeypatch.setattr(sharing, "CPU_IS_FAST", True)
    wide = [torch.randn(2, 7, 8, requires_grad=True) for _ in range(3)]
    narrow = [states.detach().bfloat16().requires_grad_() for states in wide]
    mask = torch.zeros(2, 1, 1, 7).masked_fill(torch.arange(7) > 4, -torch.inf) if masked else None
    upstream, kinds = torch.randn(2, 7, 8), []

    def note(tensor):
        kinds.append(tensor.dtype)
        return tensor

    context = sharing.attend(*wide, 2, mask)
    context.backward(upstream)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            in_bfloat16 = sharing.attend(*narrow, 2, mask)
        in_bfloat16.backward(upstream.bfloat16())
    assert set(kinds) == {torch.bfloat16}
    for exact, other in [(context, in_bfloat16), *((a.grad, b.grad) for a, b in zip(wide, narrow, strict=True))]:
        assert other.dtype == torch.bfloat16
        assert (other - exact).norm() < 0.02 * exact.norm()

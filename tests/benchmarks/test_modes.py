"""What forms of the adapter can express: decompositions of tensors that are known to have one."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("modes")


def low_rank(n=5, out=7, inner=6, rank=3):
    torch.manual_seed(0)
    V, U, P = (torch.randn(size, rank, dtype=torch.float64) for size in (out, inner, n))
    return torch.einsum("ir,nr,jr->nij", V, P, U)


@pytest.mark.parametrize("way", ["cp", "tucker"])
def test_a_tensor_of_its_rank_is_explained_whole(modes, way):
    stack, fit = low_rank(), getattr(modes, way)
    torch.testing.assert_close(fit(stack, 3), stack, rtol=1e-4, atol=1e-4)
    assert (fit(stack, 2) - stack).norm() > 0.05 * stack.norm()


def test_slices_are_the_blocks_of_a_layer(modes):
    whole = torch.arange(24.0).view(4, 6)
    parts = modes.slices({"a": whole}, {"a": (2, 3)})
    assert torch.cat([torch.cat([parts["a", 3 * row + c] for c in range(3)], 1) for row in range(2)]).equal(whole)


def test_a_layer_that_a_form_does_not_adapt_explains_nothing(modes):
    torch.manual_seed(0)
    wanted = {"a": torch.randn(4, 4), "b": torch.randn(4, 4)}
    cut = {"a": (1, 1), "b": (1, 1)}
    sets = {"first": wanted, "adam": wanted, "validation": wanted}
    lora = modes.Form(8, 4, {"a": (1, 1)}, {})
    shares = modes.predictors(lora, sets, cut)
    assert shares["first even"] == pytest.approx(0.5)
    assert shares["adam raw"] == pytest.approx(
        float(wanted["a"].square().sum() / (torch.cat([*wanted.values()])).square().sum())
    )
    apart = modes.Form(8, 4, cut, {"a": 0, "b": 1})  # a full set of factors for each
    assert all(share == pytest.approx(1, abs=1e-3) for share in modes.predictors(apart, sets, cut).values())


@pytest.mark.parametrize(("other", "expected"), [((1, 2, 9), 1.0), ((3, 2, 1), -1.0), ((1, 3, 2), 0.5)])
def test_rank_correlation(modes, other, expected):
    assert modes.spearman((10, 20, 30), other) == pytest.approx(expected)


def test_forms_of_the_embedded_model(modes):
    recipe = modes.load_recipe("scenes-colour", [])
    one, two, lora = (
        modes.form_of(word, recipe) for word in ("aurora", "aurora:factor_groups=[vision_model]", "lora:1x")
    )
    assert set(one.groups.values()) == {0} and set(two.groups.values()) == {0, 1}
    assert one.layers.keys() == lora.layers.keys() and one.weights == 33_865 and lora.rank == 1 and not lora.groups

"""How many kernels a step launches: the numbers of `docs/speed.md` do not grow."""

import sys
from pathlib import Path

import pytest
import torch

from aurora_petl.backbones import sharing

DTYPES = ("fp32", "autocast", "bf16")
MOST = {  # of the floor, at 12 layers
    "vision": {"Aurora": 1.25},
    "fusion": {"Aurora": 1.6, "Aurora, ICE, GQT": 2.0},
    "clip": {"Aurora": 1.6},
}


@pytest.fixture(scope="module")
def script():
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import count_kernels

        yield count_kernels
    finally:
        sys.path.pop()


# and whether attention in bfloat16 is plain products, as on a CPU that computes in it
CASES = [(part, dtype, False) for part in MOST for dtype in DTYPES]
CASES += [(part, dtype, True) for part in ("vision", "fusion") for dtype in ("autocast", "bf16")]


@pytest.mark.parametrize(("part", "dtype", "computes_in_bfloat16"), CASES)
def test_of_a_step(script, part, dtype, computes_in_bfloat16, monkeypatch):
    monkeypatch.setattr(sharing, "CPU_IS_FAST", computes_in_bfloat16)

    def of_twelve_layers(name):  # every layer between the first and the last adds the same
        few, more = (script.kernels(*script.variants(part, dtype, layers, 2)[name]()) for layers in (2, 3))
        return few + 10 * (more - few)

    floor, full = of_twelve_layers("floor"), of_twelve_layers("full")
    for name, most in MOST[part].items():
        found = of_twelve_layers(name)
        assert found <= most * floor, name
        assert found < full or "ICE" in name or part == "clip"


def test_inference_costs_what_the_frozen_model_does(script):
    found = []
    for name in ("floor", "Aurora"):
        _, run = script.variants("vision", "fp32", 2, 2)[name]()
        with torch.no_grad():
            run()
            with script.Kernels() as counted:
                run()
        found.append(counted.counts)
    assert found[0] == found[1]

"""How many kernels a step launches: the numbers of `docs/speed.md` do not grow."""

import sys
from contextlib import nullcontext
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


# As on a GPU, and as on a CPU that computes in bfloat16, or does not
FORMS = {"gpu": [*DTYPES], "fast": ["autocast", "bf16"], "slow": ["autocast", "bf16"]}
CASES = [(part, dtype, form) for form, dtypes in FORMS.items() for part in MOST for dtype in dtypes]


@pytest.mark.parametrize(("part", "dtype", "form"), [case for case in CASES if case[2] == "gpu" or case[0] != "clip"])
def test_of_a_step(script, part, dtype, form, monkeypatch):
    monkeypatch.setattr(sharing, "CPU_IS_FAST", form == "fast")

    def of_twelve_layers(name):  # every layer between the first and the last adds the same
        with script.as_on_a_gpu() if form == "gpu" else nullcontext():
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

"""The script that tests the ends of the ranges reads all of them."""

import re

from tests import versions


def test_every_package_has_a_release_as_its_lower_bound():
    oldest, newest = versions.requirements("oldest"), versions.requirements("newest")
    assert len(oldest) == len(newest) > 15
    assert all(re.fullmatch(r"[a-z-]+(\[[a-z,]+\])?==[0-9.]+", line) for line in oldest)
    assert {line.split("==")[0] for line in oldest} >= {"transformers", "peft", "accelerate", "safetensors", "pillow"}
    assert any(line.startswith("transformers>=") and line.endswith(",<6") for line in newest)
    assert re.fullmatch(r"torch==[0-9.]+", versions.pinned_torch())

"""Recipes of a test: files of them, and the line that refuses a wrong one."""

import pytest

from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe


def refusal(*arguments) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        load_recipe(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(path, text):
    path.write_text(text)
    return path

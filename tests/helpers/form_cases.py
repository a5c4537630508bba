"""The pictures that tests write in every form, what must be read of them, and the line that refuses wrong ones."""

import io

import pytest
from PIL import Image

from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from tests.helpers import forms
from tests.helpers.forms import examples

MADE = examples()
FEW = examples(12)


def refusal(data, root=None, broken="stop", **files) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        load_dataset(data, root, files, broken).check()
    message = str(caught.value)
    assert "\n" not in message
    return message


def counts(dataset) -> tuple[int, int, int]:
    return tuple(sum(item.split == split for item in dataset) for split in forms.SPLITS)


def content(dataset):
    """All of a data set but what its pictures are called."""
    pictures = [dataset.image(row) for row in range(len(dataset))]
    return sorted(
        (item.captions, item.split, picture.size, picture.tobytes())
        for item, picture in zip(dataset, pictures, strict=True)
    )


EXPECTED = sorted(
    (e.captions, e.split, (16 + n, 16 + n), Image.open(io.BytesIO(e.data)).tobytes()) for n, e in enumerate(MADE)
)

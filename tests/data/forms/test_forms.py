"""Forms of other people's data: the same pictures give the same data set in each, and what is wrong is told by row."""

import pickle

import pytest

from aurora_petl.data import load_dataset
from aurora_petl.data.forms import FORMS
from aurora_petl.errors import AuroraError
from tests.helpers import forms
from tests.helpers.forms import WRITERS, examples

MADE = examples()


def refusal(data, root=None, broken="stop", **files) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        load_dataset(data, root, files, broken).check()
    message = str(caught.value)
    assert "\n" not in message
    return message


def content(dataset):
    """Captions, split and pixels of every picture, and its id only where pictures share it."""
    return sorted(
        (item.captions, item.split, dataset.image(row).size, dataset.image(row).tobytes())
        for row, item in enumerate(dataset)
    )


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_pictures_in_every_form_are_the_same_data(tmp_path, form):
    if form in forms.LIBRARY:
        pytest.importorskip("datasets")
    path = WRITERS[form](tmp_path / "mine", MADE)
    found = load_dataset(path)
    assert content(found) == sorted(
        (e.captions, e.split, (16 + n, 16 + n), found_pixels(e)) for n, e in enumerate(MADE)
    )
    assert len({item.id for item in found}) == len(found) == 60 and not found.clips
    found.check()
    key = form.partition(",")[0]
    if key != "own":
        assert found.note == (f"reads {FORMS[key].title}: 60 pictures, 120 captions (train 36, validation 12, test 12)")
    there = pickle.loads(pickle.dumps(found.split("test")))  # to a loader worker
    assert list(there) == [item for item in found if item.split == "test"]
    assert there.image(3).tobytes() == found.split("test").image(3).tobytes()


def found_pixels(example) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(example.data)).tobytes()

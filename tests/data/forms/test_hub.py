"""Data that the library datasets reads: of the hub, and parquet files."""

import pytest

import aurora_petl
from aurora_petl import training
from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from tests.helpers import forms
from tests.helpers.form_cases import EXPECTED, FEW, MADE, content, refusal
from tests.helpers.forms import write


def test_without_the_library_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    write(tmp_path / "mine/train.parquet", b"PAR1")
    assert "mine/train.parquet needs the library datasets: in the checkout of aurora-petl, run" in refusal(
        tmp_path / "mine"
    )
    assert refusal("nobody/nothing").startswith(
        "nobody/nothing, which is no folder here but may be a dataset of the hub,"
    )


def test_a_dataset_of_the_hub_by_its_id(tmp_path, monkeypatch, library):
    saved = library.load_from_disk(forms.saved(tmp_path / "saved", MADE))
    asked = []
    monkeypatch.setattr(library, "load_dataset", lambda *words: asked.append(words) or saved)
    found = load_dataset("some/thing", files={"config": "small"})
    assert content(found) == EXPECTED and asked == [("some/thing", "small")]
    assert found.where(0).startswith("some/thing/train, picture 1: ")

    def fail(*words):
        raise ConnectionError("cannot reach it\nat all")

    monkeypatch.setattr(library, "load_dataset", fail)
    assert refusal("some/thing") == (
        "some/thing is no folder here, and as a dataset of the hub it cannot be read by datasets: cannot reach it"
    )


def test_wrong_rows_of_parquet_are_named_with_their_file(tmp_path, library):
    rows = {"image": [e.data for e in FEW], "text": ["a", "", None, *"abcdefghi"]}
    (tmp_path / "mine").mkdir()
    library.Dataset.from_dict(rows).to_parquet(tmp_path / "mine/some.parquet")
    message = refusal(tmp_path / "mine")
    assert message == (
        "mine/some.parquet, row 2: empty caption for some.parquet/00000001; write one or remove the row; "
        'mine/some.parquet, row 3: "text" must be text or a list of texts'
    )
    assert len(load_dataset(tmp_path / "mine/some.parquet", broken="skip")) == 10
    library.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "mine/some.parquet")
    assert "mine/some.parquet: no column of pictures among text; name it, as in" in refusal(tmp_path / "mine")
    write(tmp_path / "other/some.parquet", b"no parquet")
    assert refusal(tmp_path / "other").startswith("other/some.parquet cannot be read by datasets: ")


def test_train_takes_a_dataset_in_memory(tmp_path, library, monkeypatch):
    rows = {"image": [e.data for e in FEW], "caption": [e.captions[0] for e in FEW]}
    table = library.Dataset.from_dict(rows).cast_column("image", library.Image())
    asked = []
    monkeypatch.setattr(training, "train", lambda recipe, folder, **words: asked.append((recipe.data, folder)))
    monkeypatch.setattr("aurora_petl.api.load", lambda folder: folder)
    out = tmp_path / "runs/mine"
    assert aurora_petl.train(data=table, out=out) == out
    assert asked == [(str(tmp_path / "runs/mine.data"), out)]
    assert len(load_dataset(tmp_path / "runs/mine.data")) == 12
    with pytest.raises(AuroraError, match=r"mine\.data is there already; give data='"):
        aurora_petl.train(data=table, out=out)
    with pytest.raises(AuroraError, match="give out, the run's folder"):
        aurora_petl.train(data=table)
    with pytest.raises(AuroraError, match=r"data is a list of 1; give a name or the path"):
        aurora_petl.train(data=[1], out=out)

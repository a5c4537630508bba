"""Vectors of pictures and captions in Parquet and NumPy files."""

import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import aurora_petl
from aurora_petl import features
from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from tests.helpers.families import make
from tests.helpers.pictures import make_folder
from tests.test_sharing import tuned

SUFFIXES = [
    ".npz",
    pytest.param(".parquet", marks=pytest.mark.skipif(not find_spec("pyarrow"), reason="needs pyarrow")),
]


def read(file):
    """The columns of a file as those of NumPy's form."""
    if file.suffix == ".npz":
        return dict(np.load(file))
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pylist()
    columns = {f"{name}s": np.array([row[name] for row in rows]) for name in ("id", "path", "split")}
    columns["image_embeddings"] = np.array([row["image_embedding"] for row in rows], np.float32)
    columns["captions"] = np.array([text for row in rows for text in row["captions"]])
    columns["caption_embeddings"] = np.array([own for row in rows for own in row["caption_embeddings"]], np.float32)
    columns["caption_image"] = np.array([place for place, row in enumerate(rows) for _ in row["captions"]])
    return columns


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tuned(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_holds_every_picture_and_caption_with_its_vector(suffix, run, folder, tmp_path, capsys):
    out = tmp_path / f"deep/shapes{suffix}"
    assert main(["features", str(run), str(folder), "--out", str(out), "--batch-size", "7", "--quiet"]) == 0
    printed, err = capsys.readouterr()
    assert printed == f"{out}: 24 pictures and 48 captions, float32 of 128\n" and err == ""
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    found, data, model = read(out), load_dataset(folder), aurora_petl.load(run)
    assert found["ids"].tolist() == [item.id for item in data]
    assert found["paths"].tolist() == [f"{folder}/{item.image}" for item in data]
    assert found["splits"].tolist() == [item.split for item in data]
    assert found["captions"].tolist() == [text for item in data for text in item.captions]
    assert found["caption_image"].tolist() == [row for row, item in enumerate(data) for _ in item.captions]
    assert found["image_embeddings"].dtype == found["caption_embeddings"].dtype == np.float32
    assert np.allclose(found["image_embeddings"], model.encode_images(found["paths"].tolist()), atol=1e-5)
    assert np.allclose(found["caption_embeddings"], model.encode_texts(found["captions"].tolist()), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_need_no_captions(suffix, run, folder, tmp_path, capsys):
    bare, out = tmp_path / "bare", tmp_path / f"bare{suffix}"
    (bare / "deep").mkdir(parents=True)
    names = sorted(item.image for item in load_dataset(folder))[:3]
    for name in names:
        shutil.copy(folder / name, bare / "deep" / Path(name).name)
    assert main(["features", str(run), str(bare), "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert printed == f"{out}: 3 pictures and 0 captions, float32 of 128\n" and "3 pictures without captions" in err
    found = read(out)
    assert found["paths"].tolist() == [f"{bare}/deep/{Path(name).name}" for name in names]
    assert found["splits"].tolist() == ["", "", ""] and len(found["captions"]) == 0
    vectors = aurora_petl.load(run).encode_images(found["paths"].tolist())
    assert np.allclose(found["image_embeddings"], vectors, atol=1e-5)
    with pytest.raises(AuroraError, match="3 pictures without captions"):
        load_dataset(bare)  # to train on


def test_what_may_be_meant_as_captions_is_not_left_out(run, folder, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / load_dataset(folder)[0].image, bare / "a.png")
    (bare / "labels.csv").write_text("file,said\na.png,hello\n")
    assert main(["features", str(run), str(bare), "--out", str(tmp_path / "x.npz")]) == 1
    assert "files.caption_column=NAME" in capsys.readouterr().err
    (bare / "labels.csv").rename(bare / "film.mp4")
    assert main(["features", str(run), str(bare), "--out", str(tmp_path / "x.npz")]) == 0
    assert "reads 1 picture without captions; 1 clip left out, such as film.mp4" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_split_of_a_model_with_several_vectors_a_picture(suffix, folder, tmp_path):
    model = aurora_petl.load(make("blip-2", tmp_path / "model"))
    written = features.write_features(model, load_dataset(folder).split("test"), tmp_path / f"x{suffix}", batch_size=4)
    found = read(written.file)
    assert written.shape == (3, 16) and (written.pictures, written.captions) == (6, 12)
    assert found["image_embeddings"].shape == (6, 3, 16) and found["caption_embeddings"].shape == (12, 16)
    assert np.allclose(found["image_embeddings"], model.encode_images(found["paths"].tolist()), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_holds_a_batch_alone(suffix, run, tmp_path, monkeypatch):
    """No more than a batch of vectors, or a row group of them, is alive at a time."""
    monkeypatch.setattr(features, "GROUP", 4)
    data = load_dataset(make_folder(tmp_path / "many"))
    sizes = []
    texts = features._Source.texts
    monkeypatch.setattr(features._Source, "texts", lambda self, own: sizes.append(len(own)) or texts(self, own))
    features.write_features(aurora_petl.load(run), data, tmp_path / f"x{suffix}", batch_size=4)
    assert len(read(tmp_path / f"x{suffix}")["ids"]) == 24 and max(sizes) == 8
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 6


def test_clips_are_the_mean_of_their_frames(tmp_path):
    data = load_dataset("scenes-moves").split("test")
    data = replace(data, items=data.items[:3])
    model = aurora_petl.load("blip-mini")
    with pytest.raises(AuroraError, match="holds clips; say how many frames"):
        features.write_features(model, data, tmp_path / "x.npz")
    features.write_features(model, data, str(tmp_path / "x.npz"), frames=2)  # text will do
    own = [model.encode_images(data.frames(row, 2)).mean(0) for row in range(len(data))]
    own = np.array([vector / np.linalg.norm(vector) for vector in own])
    assert np.allclose(np.load(tmp_path / "x.npz")["image_embeddings"], own, atol=1e-5)


def test_a_picture_that_breaks_off_leaves_no_file(run, tmp_path):
    folder = make_folder(tmp_path / "mine")
    path = folder / "images/20.png"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "out").mkdir()
    with pytest.raises(AuroraError, match=r"captions.jsonl, line 21: images/20.png"):
        features.write_features(aurora_petl.load(run), load_dataset(folder), tmp_path / "out/x.npz", batch_size=4)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "DATA", "--out", "x.csv"], "x.csv ends in '.csv'; name a .parquet or .npz file"),
        (["RUN", "DATA", "--out", "x.npz", "--split", "tset"], "no rows of split 'tset'"),
        (["RUN", "nowhere", "--out", "x.npz"], "no dataset 'nowhere'"),
        (["nowhere", "DATA", "--out", "x.npz"], "nowhere"),
        (["RUN", "scenes-questions", "--out", "x.npz"], "vectors are of pictures with captions"),
        (["RUN", "DATA", "--out", "x.npz", "--batch-size", "0"], "--batch-size is 0"),
        (["RUN", "DATA", "--out", "."], "ends in ''; name a"),
    ],
)
def test_what_cannot_be_written_is_one_line(words, message, run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("RUN", str(run)).replace("DATA", str(folder)) for word in words]
    assert main(["features", *given]) == 1
    out, err = capsys.readouterr()
    assert not out and message in err and not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_says_what_to_install(run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["features", str(run), str(folder), "--out", str(tmp_path / "x.parquet")]) == 1
    assert "x.parquet: Parquet needs pyarrow: " in capsys.readouterr().err


@pytest.mark.parametrize("words", ["export RUN OUT", "features RUN DATA --out OUT.npz", "push RUN you/mine --dry-run"])
def test_of_several_processes_the_first_alone_writes(words, run, folder, tmp_path, monkeypatch, capfd):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():  # as torchrun sets them
        monkeypatch.setenv(name, value)
    words = words.replace("RUN", str(run)).replace("DATA", str(folder)).replace("OUT", str(tmp_path / "out"))
    assert main(words.split()) == 0
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())

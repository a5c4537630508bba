"""Indexes that were tampered with, cut, or planted: one line each, nothing outside overwritten, no wrong hit."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aurora_petl.errors import AuroraError
from aurora_petl.search import shards as module
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from tests.helpers.pictures import draw


def build(album, out=None):
    return build_index(album, out or album.with_suffix(".index"), "blip-mini", progress=False)


@pytest.fixture
def out(album, monkeypatch):
    """The index of ten pictures in shards of four, four and two."""
    monkeypatch.setattr("aurora_petl.search.index.BATCH", 2)
    monkeypatch.setattr(module, "SHARD", 4)
    build(album)
    return album.with_suffix(".index")


def rows_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["rows"])


def rewritten(path, features=None, rows=None, **others):
    """Write a shard with other features, or other rows in its header."""
    tensors = {"untuned": load_file(path)["untuned"] if features is None else features, **others}
    save_file(tensors, path, {"rows": json.dumps(rows or rows_of(path))})


def digested(path, names, features):
    """What a shard's rows are, with the digest that belongs to them: forged well."""
    key = json.loads((path.parent / "manifest.json").read_text())["keys"]["untuned"]
    made = module.Shards(path.parent, "none", {"untuned": key})._digest("untuned", names, features)
    return {"names": names, "digests": {"untuned": made}}


def forge(path, names, features):
    rewritten(path, features, digested(path, names, features))


def test_a_shards_digest_is_over_key_names_and_features(out):
    import hashlib

    path = out / "pictures-00000.safetensors"
    rows, features = rows_of(path), load_file(path)["untuned"]
    key = json.loads((out / "manifest.json").read_text())["keys"]["untuned"]
    head = json.dumps(["untuned", key, rows["names"], [4, features.shape[1]]]).encode()
    assert rows["digests"] == {"untuned": hashlib.sha256(head + features.numpy().tobytes()).hexdigest()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, r, f: rewritten(p, rows={**r, "names": r["names"][:-1]}), r"is broken \(3 names, untuned: \(4,"),
        (lambda p, r, f: rewritten(p, rows={**r, "names": r["names"][1:] + r["names"][:1]}), "is changed"),
        (lambda p, r, f: rewritten(p, f.roll(1, 0)), "is changed, or of another index"),
        (lambda p, r, f: rewritten(p, f.clone().fill_(torch.nan)), "holds what is no number"),
        (lambda p, r, f: rewritten(p, f.float()), "is broken"),
        (lambda p, r, f: rewritten(p, f.to(torch.int16)), "is broken"),
        (lambda p, r, f: rewritten(p, f.flatten()), "is broken"),
        (lambda p, r, f: rewritten(p, f, tuned=f.clone()), r"is broken \(not of untuned\)"),
        (lambda p, r, f: save_file({"tuned": f}, p, {"rows": json.dumps(r)}), r"is broken \(not of untuned\)"),
        (lambda p, r, f: save_file({"untuned": f}, p), "does not say what its rows are"),
        (lambda p, r, f: rewritten(p, rows={**r, "names": 4}), "its rows have no names"),
        (lambda p, r, f: rewritten(p, rows=[1]), "does not say what its rows are"),
        (lambda p, r, f: rewritten(p, rows={**r, "digests": {}}), "is changed"),
        (lambda p, r, f: rewritten(p, rows={**r, "names": r["names"][:3] + r["names"][:1]}), "names a row twice"),
        (lambda p, r, f: forge(p, r["names"], f[:, :-1].contiguous()), "wide, others"),
        (lambda p, r, f: forge(p, rows_of(p.with_name("pictures-00000.safetensors"))["names"], f), "other features"),
        (lambda p, r, f: p.write_bytes(b""), "is empty"),
        (lambda p, r, f: p.write_bytes(p.read_bytes()[:-9]), "is broken"),
        (lambda p, r, f: p.write_text("version https://git-lfs.github.com/spec/v1"), "pointer of git-lfs"),
        (lambda p, r, f: (p.unlink(), os.mkfifo(p)), "is no file of an index, but a link or the like"),
        (lambda p, r, f: (p.unlink(), p.mkdir()), "is no file of an index"),
    ],
)
def test_a_shard_that_does_not_fit(change, message, out, album):
    path = out / "pictures-00001.safetensors"
    change(path, rows_of(path), load_file(path)["untuned"])
    with pytest.raises(AuroraError, match=message) as told:
        Library(out).picture_features("untuned")
    assert str(path) in str(told.value) and "\n" not in str(told.value)
    if "wide" not in message and "other features" not in message:
        with pytest.raises(AuroraError, match=message):
            build(album)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    update = build(album)
    assert (update.encoded, len(Library(out).picture_features("untuned"))) == (4, 10)


def test_a_shard_of_another_model_is_refused(out, album, run):
    other = album.with_suffix(".other")
    build_index(album, other, str(run), progress=False)
    path = other / "pictures-00000.safetensors"
    tuned, rows = load_file(path)["tuned"], rows_of(path)
    for shard in out.glob("pictures-*"):
        shard.unlink()
    rows["digests"] = {"untuned": rows["digests"]["tuned"]}
    save_file({"untuned": tuned}, out / path.name, {"rows": json.dumps(rows)})
    with pytest.raises(AuroraError, match="is changed, or of another index"):
        Library(out).picture_features("untuned")


def test_names_of_shards_that_are_none_are_let_be(out, album):
    for name in ("pictures-x.safetensors", "pictures-00001 (copy).safetensors", "pictures-1.safetensors", "notes.txt"):
        (out / name).write_text("x")
    assert build(album).encoded == 0 and len(Library(out).picture_features("untuned")) == 10


def test_a_shard_that_is_missing(out, album):
    (out / "pictures-00001.safetensors").unlink()
    with pytest.raises(AuroraError, match="lacks shards; run aurora index again"):
        Library(out).picture_features("untuned")


PICTURE = {"path": "a.png", "size": 1, "mtime_ns": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": [{**PICTURE, "path": "/etc/passwd"}]}, "picture 1: '/etc/passwd' is no path inside the folder"),
        ({"pictures": [PICTURE, {**PICTURE, "path": "a/../../b.png"}]}, "picture 2: 'a/../../b.png' is no path inside"),
        ({"pictures": [{**PICTURE, "path": ".."}]}, "is no path inside"),
        ({"pictures": [{**PICTURE, "path": ""}]}, "is no path inside"),
        ({"pictures": [{**PICTURE, "path": 1}]}, "path of picture 1 is 1, not a str"),
        ({"pictures": [{**PICTURE, "size": -1}]}, "picture 1: size is -1"),
        ({"pictures": [{**PICTURE, "size": 1.5}]}, "picture 1: size is 1.5"),
        ({"pictures": [{**PICTURE, "size": True}]}, "picture 1: size is True"),
        ({"pictures": [{**PICTURE, "mtime_ns": None}]}, "mtime_ns None"),
        ({"pictures": [{**PICTURE, "sha256": "x"}]}, "picture 1: sha256 is 'x'"),
        ({"pictures": [PICTURE, PICTURE]}, "a picture stands in it twice"),
        ({"pictures": [{}]}, "no 'path'"),
        ({"pictures": [3]}, "picture 1 is 3, not a dict"),
        ({"pictures": {}}, "pictures is an empty dict, not a list"),
        ({"texts": [1]}, "a caption is 1, not a str"),
        ({"skipped": []}, "skipped is an empty list, not a dict"),
        ({"folder": "/"}, "folder is '/', not a dict"),
        ({"folder": {"relative": "/etc", "absolute": "/etc"}}, "folder is not a place"),
        ({"folder": {"relative": "..", "absolute": "etc"}}, "folder is not a place"),
        ({"model": 3}, "model is 3, not a dict"),
        ({"keys": {}}, "keys are not those of a model"),
        ({"keys": {"../x": "0" * 64}}, "keys are not those of a model"),
        ({"keys": {"untuned": "x"}}, "keys are not those of a model"),
        ({"format": "2"}, "format is '2'"),
        ({"format": True}, "format is True"),
    ],
)
def test_a_manifest_that_does_not_fit(change, message, out, album):
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
    for use in (Library, lambda out: build(album)):
        with pytest.raises(AuroraError, match=r"manifest.json is broken \(.*\); remove .* and make it again") as told:
            use(out)
        assert message in str(told.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": ' + "9" * 5000 + "}", "[" * 100_000, '"\\ud83d"'])
def test_a_manifest_that_is_none(text, out):
    (out / "manifest.json").write_text(text)
    with pytest.raises(AuroraError, match=r"manifest.json is broken \(.*\); remove"):
        Library(out)


def test_an_index_of_another_version(out, album):
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(AuroraError, match="has format 1, not 2; remove .* and make it again with aurora index"):
        build(album)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lock", None),
        (".lock", "lock"),
        ("manifest.json.part", None),
        ("manifest.json", "manifest.json is a link"),
        ("pictures-00000.safetensors", "is no file of an index, but a link"),
        ("captions-00000.safetensors", "is no file of an index, but a link"),
        ("pictures-00003.safetensors", "is no file of an index, but a link"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_planted_links(name, message, there, out, album, tmp_path):
    """An index that came from elsewhere: what its links point to is neither overwritten nor read as the index's own."""
    target = tmp_path / "mine"
    if there:
        shutil.copy(out / name, target) if (out / name).exists() else target.write_text("mine")
    before = target.read_bytes() if there else None
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(target)
    draw("cross", "purple").save(album / "new.png")  # so that there is something to write
    if message:
        with pytest.raises((AuroraError, OSError), match=message):
            build(album)
    else:
        assert build(album).encoded == 1
    if name not in ("lock", ".lock", "manifest.json.part"):
        with pytest.raises(AuroraError):
            Searcher(Library(out)).search(draw("cross", "red"), texts=name.startswith("captions"))
    assert (target.read_bytes() if there else None) == before and target.exists() == there

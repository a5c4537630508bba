"""Shards of pictures and captions: their order, their wrong samples, their size in memory."""

import pickle

from aurora_petl.data import load_dataset
from aurora_petl.recipe import load_recipe, located
from tests.helpers import forms
from tests.helpers.form_cases import FEW, MADE, refusal
from tests.helpers.forms import pack


def test_shards_by_pattern_are_the_named_ones_in_order(tmp_path):
    path = forms.webdataset(tmp_path / "mine", MADE)
    found = load_dataset(f"{path}/train/{{00000..00001}}.tar")
    assert len(found) == 24 and found[0].image == "00000.tar/000.png" and found[12].image == "00001.tar/001.png"
    assert len(load_dataset(f"{path}/{{train,test}}/*.tar")) == 48
    assert "2 of its 5 files are not there, the first is" in refusal(f"{path}/train/{{00000..00004}}.tar")
    assert "fits no files" in refusal(f"{path}/*.tar")
    assert "stands for 100,000,000 files" in refusal("{0..9999}{0..9999}.tar")
    assert load_dataset(path / "test/00000.tar")[0].source == "00000.tar"


def test_wrong_samples_are_named_or_left_out(tmp_path):
    picture = FEW[0].data
    members = [
        ("a.jpg", picture),
        *(("b.png", picture), ("b.txt", b" \n")),
        *(("c.json", b"{"), ("c.png", picture)),
        *(("d.json", b'{"caption": 3}'), ("d.png", picture)),
        ("e.txt", b"e"),
        *(("f.png", picture), ("f.txt", b"\xff")),
        *(("g.png", picture), ("g.seg.png", b""), ("g.txt", b"one\n\ntwo"), ("g.cls", b"3")),
        *(("../h.png", picture), ("../h.txt", b"h")),
        *(("i.png", picture), ("i.txt", b"i"), ("j.png", picture), ("j.txt", b"j"), ("i.png", b""), ("i.txt", b"i")),
    ]
    path = pack(tmp_path / "mine/x.tar", members).parent
    message = refusal(path)
    for said in (
        "empty caption for x.tar/b.png",
        "c.json: not JSON",
        '"caption" must be text',
        "f.txt, line 1: not UTF",
    ):
        assert f": {said}" in message
    assert message.startswith("mine/x.tar, sample 1: ") and message.endswith("(and 3 more)")
    found = load_dataset(path, broken="skip")
    assert found[0].captions == ("one", "two") and [item.image for item in found][:3] == [
        "x.tar/g.png",
        "x.tar/i.png",
        "x.tar/j.png",
    ]
    assert "; 8 samples left out: " in found.note


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    path = forms.webdataset(tmp_path / "mine", FEW)
    shard = path / "train/00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert refusal(path).startswith(f"{shard} is not a plain tar (unexpected end of data)")


def test_an_index_of_shards_takes_few_bytes_a_sample(tmp_path):
    members = [(f"{n:06}{suffix}", b"fifty characters about a picture, as they are often"[:50]) for n in range(500)
               for suffix in (".jpg", ".txt")]  # fmt: skip
    found = load_dataset(pack(tmp_path / "mine/0.tar", members).parent)
    assert len(found) == 500
    assert len(pickle.dumps(found)) / 500 < 210  # bytes, of which 50 are the caption and 18 the name


def test_a_pattern_of_shards_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(load_recipe(None, ["data=in/{0..3}.tar"])).data == str(tmp_path / "in/{0..3}.tar")
    assert located(load_recipe(None, ["data=some/thing"])).data == "some/thing"

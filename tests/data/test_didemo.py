"""DiDeMo: all descriptions of a clip are its one paragraph."""

import pytest

from aurora_petl.data import load_dataset
from aurora_petl.data.protocol import caption_text
from tests.helpers import benchmarks
from tests.helpers.benchmarks import drawn
from tests.helpers.rewrite import refusal, rewrite

pytest.importorskip("av")


@pytest.mark.parametrize("official", [False, True])
def test_paragraphs(tmp_path, official):
    data = load_dataset("didemo", benchmarks.didemo(tmp_path / "d", official))
    assert len(data) == 32 and [len(data.split(s)) for s in ("train", "validation", "test")] == [16, 8, 8]
    for it, item in zip(drawn(), data, strict=True):
        assert item.captions == (caption_text(" ".join(it.captions()[:3]), 40),)
        assert item.image.endswith(".mp4") and item.id.endswith(".avi")  # stored otherwise than the tables say
    data.check()


def test_a_paragraph_keeps_forty_words(tmp_path):
    root = benchmarks.didemo(tmp_path / "d")
    rewrite(root / "train.jsonl", lambda rows: rows[0].update(caption=" ".join(f"w{n}" for n in range(60))))
    assert load_dataset("didemo", root)[0].captions == (" ".join(f"w{n}" for n in range(40)),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"description": 4}, 'train_data.json, row 2: "description" is 4, not text'),
        ({"video": ""}, "train_data.json, row 2: \"video\" is '', not text"),
        ({"video": "gone.avi"}, "1 of 33 videos are missing"),
    ],
)
def test_wrong_rows(tmp_path, change, said):
    root = benchmarks.didemo(tmp_path / "d", official=True)
    rewrite(root / "train_data.json", lambda rows: rows[1].update(change))
    assert said in refusal("didemo", root)


def test_a_folder_that_is_not_whole(tmp_path):
    root = benchmarks.didemo(tmp_path / "d", official=True)
    (root / "val_data.json").unlink()
    assert "lacks val_data.json or didemo_ret_val.json (files.validation), has train_data.json" in refusal(
        "didemo", root
    )

"""The command `aurora convert`: what it prints and writes, and one line for a wrong file."""

import errno
import os
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.blip.convert import convert
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from tests.helpers import checkpoints


def test_the_command_prints_what_became_of_the_keys(originals, conversions, tmp_path, capsys):
    out = tmp_path / "models/mine"
    assert main(["convert", str(originals["pretraining"]), "--out", str(out), "--image-size", "96"]) == 0
    printed = capsys.readouterr().out
    report = conversions["pretraining"]
    assert "pictures of 96 x 96 pixels" in printed
    assert "vision: 3 layers, 192 wide, 3 heads" in printed and "text: 3 layers, 128 wide, 2 heads" in printed
    cells = {line.split("  ")[0]: line.split()[-2:] for line in printed.splitlines()}
    assert cells["weights of the model"] == [str(len(report.used)), "model.safetensors"]
    assert cells["momentum encoder and queue"] == [str(len(report.momentum)), "momentum.safetensors"]
    dropped = [int(cell[0]) for cell in cells.values() if cell[1:] == ["dropped"]]
    assert sum(dropped) == len(report.dropped)
    assert "not for" not in printed and str(out) in printed
    assert load_backbone(out).image_size == 96


def with_code(path: Path) -> None:
    torch.save({"model": {}, "config": Path("x")}, path)


def cut_short(path: Path) -> None:
    torch.save({"model": checkpoints.vqa()}, path)
    path.write_bytes(path.read_bytes()[:-1000])


def another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no weights")


def saved(change):
    def make(path: Path) -> None:
        state = checkpoints.retrieval()
        change(state)
        torch.save({"model": state}, path)

    return make


def renamed(state) -> None:
    for n in range(5):
        state[f"visual_encoder.blocks.0.lora_{n}"] = torch.zeros(2)


def without_a_layer_norm(state) -> None:
    del state["text_encoder.encoder.layer.1.output.LayerNorm.bias"]


def with_a_wide_head(state) -> None:
    state["itm_head.weight"] = torch.zeros(3, 128)


def odd_width(state) -> None:
    state["visual_encoder.pos_embed"] = torch.zeros(1, 17, 200)


def no_square(state) -> None:
    state["visual_encoder.pos_embed"] = torch.zeros(1, 18, 192)


def other_words(state) -> None:
    state["text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(21128, 128)


def without_a_queue(state) -> None:
    del state["text_queue"]


def a_far_layer(state) -> None:
    state["text_encoder.encoder.layer.999999999.output.dense.bias"] = torch.zeros(128)


def not_a_number(state) -> None:
    state["itm_head.bias"][1] = torch.nan


def sparse(state) -> None:
    state["itm_head.weight"] = torch.zeros(2, 128).to_sparse()


def on_meta(state) -> None:
    state["itm_head.weight"] = torch.zeros(2, 128, device="meta")


def quantised(state) -> None:
    state["itm_head.weight"] = torch.quantize_per_tensor(torch.zeros(2, 128), 0.1, 0, torch.qint8)


def a_number_for_a_name(state) -> None:
    state[7] = torch.zeros(1)


def a_long_name(state) -> None:
    state["x\n" * 10_000] = torch.zeros(1)


def of_no_size(state) -> None:
    state["visual_encoder.patch_embed.proj.weight"] = torch.zeros(192, 3, 0, 0)


BAD = {
    "a pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of git-lfs"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: it is a folder"),
    "a pipe": (os.mkfifo, "cannot be read: it is a pipe"),
    "a far layer": (saved(a_far_layer), "not whole: of the layers .* before 999999999 are missing"),
    "NaN": (saved(not_a_number), "itm_head.bias holds NaN or infinity"),
    "sparse": (saved(sparse), "itm_head.weight is no plain tensor"),
    "on no device": (saved(on_meta), "itm_head.weight is no plain tensor"),
    "quantised": (saved(quantised), "itm_head.weight is no plain tensor|no file of torch.save"),
    "a number for a name": (saved(a_number_for_a_name), "7 among its weights is no tensor"),
    "a long name": (saved(a_long_name), "1 keys have no place"),
    "of no size": (saved(of_no_size), "weights of no size"),
    "no file": (lambda path: None, "no such file"),
    "a text": (lambda path: path.write_text("hello"), "no file of torch.save"),
    "empty": (lambda path: path.write_bytes(b""), "no file of torch.save"),
    "cut short": (cut_short, "or not all of one; download it again"),
    "another archive": (another_archive, "no file of torch.save"),
    "code": (with_code, "holds pathlib.* can run code.*refused"),
    "bare weights": (lambda path: torch.save({"a": torch.zeros(1)}, path), "has no 'model'.*it has a$"),
    "a tensor": (lambda path: torch.save(torch.zeros(1), path), "has no 'model'.*holds a Tensor"),
    "no tensors": (lambda path: torch.save({"model": {"x": 1}}, path), "x among its weights is no tensor"),
    "another model": (lambda path: torch.save({"model": {"fc": torch.zeros(1)}}, path), "it has no visual_encoder"),
    "unknown keys": (saved(renamed), "5 keys have no place.*lora_0.*lora_2.* and 2 more"),
    "not whole": (saved(without_a_layer_norm), "lacks 1 weights, text_encoder.encoder.layer.1.output.LayerNorm.bias"),
    "a wide head": (saved(with_a_wide_head), r"no place in BLIP of this size: itm_head.weight \(3, 128\)"),
    "an odd width": (saved(odd_width), "no known size.*vision width of 200"),
    "no square": (saved(no_square), "no known size.*17 picture positions"),
    "other words": (saved(other_words), "no known size.*21128 words"),
    "half a queue": (saved(without_a_queue), "without both of image_queue and text_queue"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
    make, message = BAD[case]
    path = tmp_path / "file.pth"
    make(path)
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and str(path) in err
    with pytest.raises(AuroraError, match=message):
        convert(path, tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} <= {"file.pth"}


def test_wrong_uses_are_one_line(originals, conversions, tmp_path, capsys):
    path, there = str(originals["retrieval"]), str(conversions["retrieval"].folder)
    for words, message in (
        (["--out", there], "exists already"),
        (["--out", str(tmp_path / "x"), "--image-size", "100"], "96 and 112"),
    ):
        assert main(["convert", path, *words]) == 1
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["convert", path])
    assert "--out" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", ["save_file", "_save_preprocessing"])
def test_a_full_disk_is_one_line_and_leaves_no_folder(writer, originals, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        if writer == "_save_preprocessing":
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "model"))
        Path(args[1]).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(f"aurora_petl.backbones.blip.convert.{writer}", full)
    assert main(["convert", str(originals["vqa"]), "--out", str(tmp_path / "model")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and str(tmp_path / "model") in err
    assert not list(tmp_path.iterdir())


def test_a_converted_folder_has_the_permissions_of_the_umask(originals, tmp_path):
    before = os.umask(0o027)
    try:
        folder = convert(originals["vqa"], tmp_path / "model").folder
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750

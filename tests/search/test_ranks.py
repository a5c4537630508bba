"""An index made by two processes under a launcher, against one made by one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from aurora_petl import locks
from aurora_petl.errors import AuroraError
from aurora_petl.search import index as module
from aurora_petl.search import shards
from aurora_petl.search.encoder import Encoder
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library

RANKS = 2


def work(rank: int, folder: str, out: str, fatal: int) -> None:
    """One rank's process, as torchrun starts it; the second one dies in its batch of number ``fatal``."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    module.BATCH, shards.SHARD = 2, 2
    sizes: list[int] = []
    encode = Encoder.pictures

    def counted(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if rank and len(sizes) == fatal:
            os._exit(9)
        return encode(self, pixels)

    Encoder.pictures = counted  # type: ignore[method-assign]
    figures = []
    for again in (False, True):
        if again and rank == 0:
            Path(folder, "images/3.png").unlink()
        update = build_index(Path(folder), Path(out), "blip-mini", progress=False)
        figures.append([sum(sizes), update.pictures, update.encoded, update.removed, list(update.skipped)])
    Path(f"{out}.{rank}").write_text(json.dumps(figures))


def spawn(album, out, monkeypatch, fatal=0):
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 20_000))
    mp.start_processes(work, (str(album), str(out), fatal), nprocs=RANKS, start_method="fork")
    return [json.loads(out.with_name(f"{out.name}.{rank}").read_text()) for rank in range(RANKS)]


def same(album, out, whole):
    """The index equals that of one process: manifest to the byte, features to rounding."""
    build_index(album, whole, "blip-mini", progress=False)
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    one, two = Library(whole), Library(out)
    for kind in ("picture_features", "text_features"):
        expected = getattr(one, kind)("untuned").float()
        assert torch.allclose(getattr(two, kind)("untuned").float(), expected, atol=2e-3) and expected.any()


def test_two_ranks_share_the_work_and_give_the_same_index(album, monkeypatch):
    (album / "images/2.png").write_text("no picture")
    shutil.copy(album / "images/0.png", album / "images/9.png")  # one picture in both shares
    out = album.with_suffix(".two")
    first, second = spawn(album, out, monkeypatch)  # made, then updated after a picture was removed
    assert first == [[4, 9, 8, 0, ["images/2.png"]], [4, 8, 0, 1, ["images/2.png"]]]
    assert second == [[5, *rest[1:]] for rest in first]
    same(album, out, album.with_suffix(".one"))


def test_one_rank_that_is_killed_ends_all_and_the_index_is_continued(album, monkeypatch):
    out = album.with_suffix(".two")
    with pytest.raises(mp.ProcessExitedException, match="exit code 9"):
        spawn(album, out, monkeypatch, fatal=2)
    with pytest.raises(AuroraError, match="is unfinished; run aurora index again"):
        Library(out)
    assert any(out.glob("pictures-*"))
    monkeypatch.setattr(locks, "LOCK_SECONDS", 30.0)  # of the first rank, which is being ended
    assert 0 < build_index(album, out, "blip-mini", progress=False).encoded < 10
    same(album, out, album.with_suffix(".one"))


@pytest.mark.slow
def test_torchrun(album, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "aurora_petl.cli", "index", str(album), "--model", "blip-mini", "--out"]
    done = subprocess.run([*command, "x.index"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == ("x.index: 10 pictures (10 encoded now, 0 removed), 20 captions\n")
    same(album, tmp_path / "x.index", tmp_path / "one.index")
    failed = subprocess.run([*command, "album"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert failed.returncode != 0 and not failed.stdout
    assert failed.stderr.count("album is no index; name another --out") == 1

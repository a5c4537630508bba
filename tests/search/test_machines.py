"""Several machines that index one folder into PostgreSQL at once, of which some are killed: nothing is lost, nothing
there twice, and no picture is encoded twice but those that a killed process was at work on."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from aurora_petl.search.query import Searcher
from aurora_petl.search.shards import digest
from aurora_petl.search.stores import build_store, open_store
from tests.helpers import postgres
from tests.helpers.pictures import draw

pytestmark = pytest.mark.skipif(bool(postgres.lacks()), reason=postgres.lacks())
SMALL = 2  # pictures of a batch
PICTURES, COPIES = 48, 6


def work(folder: str, address: str, log: str) -> None:
    """One process, which writes down what it encodes."""
    from aurora_petl.search.postgres import writer

    torch.set_num_threads(1)
    writer.BATCH, writer.PAUSE = SMALL, 0.02
    encode = writer.encode_pictures

    def logged(encoders, pixels):
        with open(log, "ab", buffering=0) as file:
            for one in pixels:
                file.write(hashlib.sha256(one.numpy().tobytes()).hexdigest().encode() + b"\n")
        time.sleep(0.03)  # as a larger model takes
        return encode(encoders, pixels)

    writer.encode_pictures = logged
    build_store(Path(folder), address, "blip-mini", progress=False)


@pytest.fixture
def mounts(tmp_path):
    """The same folder as two machines see it."""
    here = tmp_path / "one/photos"
    here.mkdir(parents=True)
    for n in range(PICTURES):
        picture = draw("circle", "red")
        picture.putpixel((n, 0), (n, 0, 0))
        (here / f"{n % 3}").mkdir(exist_ok=True)
        picture.save(here / f"{n % 3}/{n}.png")
    for n in range(COPIES):
        shutil.copy(here / f"{n % 3}/{n}.png", here / f"copy {n}.png")
    (here / "broken.png").write_text("no picture")
    shutil.copytree(here, tmp_path / "two/photos")
    return here, tmp_path / "two/photos"


def kill_some(mounts, address, tmp_path, victims, chance):
    """Two processes a machine; ``victims`` of them are killed, each at a time that chance decides."""
    import psycopg

    logs = [tmp_path / f"log {n}" for n in range(4)]
    context = mp.get_context("fork")
    processes = [
        context.Process(target=work, args=(str(mounts[n % 2]), address, str(log))) for n, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    place, library = address.split("&library=")
    with psycopg.connect(place, autocommit=True) as connection:
        for victim in chance.sample(processes, victims):
            least, until = chance.randrange(PICTURES), time.monotonic() + 60
            while _count(connection, library) < least and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.05)
            os.kill(victim.pid, signal.SIGKILL)
    for process in processes:
        process.join(120)
    ends = [process.exitcode for process in processes]
    assert set(ends) <= {0, -signal.SIGKILL} and ends.count(0) >= len(ends) - victims, ends
    lines = [line for log in logs if log.exists() for line in log.read_text().split()]
    check(mounts[0], address, lines, victims)


def _count(connection, library):
    if not connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f'"aurora_{library}".features']).fetchone()[0]:
        return 0
    return connection.execute(f'SELECT count(*) FROM "aurora_{library}".features').fetchone()[0]


def check(folder, address, lines, victims):
    expected = {
        path.relative_to(folder).as_posix(): digest(path.read_bytes())
        for path in folder.rglob("*.png")
        if path.name != "broken.png"
    }
    store = open_store(address)
    contents = store.contents("untuned")
    held = [(picture.path, picture.sha256) for picture in store.of_contents(contents.digests)]
    assert len(held) == len(store.pictures) == PICTURES + COPIES and dict(held) == expected
    assert sorted(contents.digests) == sorted(set(expected.values())) and len(contents.digests) == PICTURES
    assert list(store.skipped) == ["broken.png"]
    encoded = Counter(lines)
    assert len(encoded) == PICTURES  # by their pixels
    assert encoded.total() - PICTURES <= victims * SMALL
    assert len(Searcher(store).search("a red circle", 99)) == PICTURES + COPIES


def test_none_killed_and_no_picture_encoded_twice(mounts, address, tmp_path):
    kill_some(mounts, address, tmp_path, 0, random.Random(0))


def test_one_killed(mounts, address, tmp_path):
    kill_some(mounts, address, tmp_path, 1, random.SystemRandom())


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(12))
def test_up_to_three_killed(mounts, address, tmp_path, round_):
    kill_some(mounts, address, tmp_path, 1 + round_ % 3, random.SystemRandom())

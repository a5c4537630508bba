"""Libraries in PostgreSQL, against the same in a folder."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

from aurora_petl.errors import AuroraError
from aurora_petl.search.encoder import Encoder
from aurora_petl.search.filters import make_filter
from aurora_petl.search.library import Library
from aurora_petl.search.picture_index import Index
from aurora_petl.search.query import Searcher
from aurora_petl.search.results import Results
from aurora_petl.search.stores import build_store, open_store
from tests.helpers import postgres
from tests.helpers.pictures import draw, make_folder

TOLERANCE = 2e-3
pytestmark = pytest.mark.skipif(bool(postgres.lacks()), reason=postgres.lacks())


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each call of the encoder took."""
    counts, encode = [], Encoder.pictures
    monkeypatch.setattr(Encoder, "pictures", lambda self, pixels: counts.append(len(pixels)) or encode(self, pixels))
    return counts


def build(folder, place, model="blip-mini"):
    return build_store(folder, place, model, progress=False)


@pytest.fixture
def both(album, address, tmp_path):
    """The album in PostgreSQL and in a folder."""
    build(album, address)
    build(album, tmp_path / "album.index")
    return open_store(address), Library(tmp_path / "album.index")


@pytest.fixture
def query(address):
    """Asks the database itself, in the schema of the test's library."""
    import psycopg

    place, library = address.split("&library=")
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute("SELECT set_config('search_path', %s, false)", [f'"aurora_{library}", public'])
        yield connection.execute


def paths(store):
    return sorted(hit.what for hit in Searcher(store).search("a red circle", 99))


def test_the_page_shows_a_library_as_it_shows_a_folder(both):
    stored, folder = (Results(store) for store in both)

    def page(results, **fields):
        answer = results.answer(results.asked(fields))
        return [(hit["path"], hit["captions"]) for hit in answer["views"][0]["found"]]

    assert page(stored, q="a red circle", k="5") == page(folder, q="a red circle", k="5")
    row = Searcher(both[0]).search("a red circle", 1)[0].row
    assert page(stored, like=str(row), k="1") == page(stored, q="a red circle", k="1")
    with pytest.raises(AuroraError, match="like is 999999, and no picture has this row"):
        page(stored, like="999999")
    assert page(stored, q="a red circle", under="images") and stored.about()["pictures"] == len(both[1].pictures)


def same(found, expected):
    """The database rounds a query to float16, so that what is as near may come in another order."""
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=TOLERANCE)
    ours, theirs = ({hit.what: hit.score for hit in hits} for hits in (found, expected))
    for what in ours.keys() & theirs.keys():
        assert ours[what] == pytest.approx(theirs[what], abs=TOLERANCE)
    for what, score in (ours | theirs).items():
        assert what in ours.keys() & theirs.keys() or score == pytest.approx(expected[-1].score, abs=TOLERANCE)
    assert len(ours.keys() & theirs.keys()) > len(theirs) / 2


def test_it_answers_as_a_folder_does(both):
    ours, theirs = (Searcher(store) for store in both)
    for words in ("a red circle", draw("cross", "blue")):
        same(ours.search(words, 10), theirs.search(words, 10))
    same(ours.search("a red circle", 3, rerank=6), theirs.search("a red circle", 3, rerank=6))
    same(ours.search(draw("cross", "blue"), 9, texts=True), theirs.search(draw("cross", "blue"), 9, texts=True))
    hit = ours.search("a red circle", 1)[0]
    assert both[0].pictures[hit.row].path == hit.what and both[0].picture(hit.row).size == (96, 96)
    for row in (10**6, 10**30, -1):
        with pytest.raises(IndexError):
            both[0].pictures[row]


def test_a_run_gives_both_views(folder, run, address):
    build(folder, address, str(run))
    store = open_store(address)
    assert list(store.keys) == ["tuned", "untuned"] and len(store.pictures) == 24
    scores = [Searcher(store, view).search("a red circle", 1)[0].score for view in store.keys]
    assert abs(scores[0] - scores[1]) > 0.01


def test_several_vectors_a_picture(album, address, tmp_path, monkeypatch):
    """As BLIP-2 gives them: the nearest counts for a text, the mean of like-numbered ones for a picture."""
    encode = Encoder.pictures

    def three(self, pixels):
        feature = encode(self, pixels)
        return torch.stack([feature, feature.roll(1, 1), feature.roll(7, 1)], 1)

    monkeypatch.setattr(Encoder, "pictures", three)
    build(album, address)
    build(album, tmp_path / "album.index")
    ours, theirs = Searcher(open_store(address)), Searcher(Library(tmp_path / "album.index"))
    for words in ("a red circle", draw("cross", "blue")):
        same(ours.search(words, 10), theirs.search(words, 10))
    same(ours.search(draw("cross", "blue"), 9, texts=True), theirs.search(draw("cross", "blue"), 9, texts=True))
    assert ours.library.contents("untuned").features.shape[:2] == (10, 3)


def test_called_again_only_what_is_new_is_encoded(album, address, encoded):
    first = build(album, address)
    again = build(album, address)
    assert (first.pictures, first.encoded, first.texts) == (10, 10, 20)
    assert (again.pictures, again.encoded, again.removed) == (10, 0, 0)
    encoded.clear()
    (album / "deep").mkdir()
    (album / "images/1.png").rename(album / "deep/moved.png")
    shutil.copy(album / "images/2.png", album / "deep/copy.png")
    os.utime(album / "images/3.png", (1, 1))
    draw("cross", "green").save(album / "images/4.png", compress_level=0)
    (album / "images/5.png").write_text("no picture any more")
    (album / "captions.jsonl").unlink()
    update = build(album, address)
    assert (update.pictures, update.encoded, update.removed, update.texts) == (10, sum(encoded), 1, 0)
    assert sum(encoded) == 1 and list(update.skipped) == ["images/5.png"]
    left = [f"images/{n}.png" for n in (0, 2, 3, 4, 6, 7, 8, 9)]
    store = open_store(address)
    assert paths(store) == ["deep/copy.png", "deep/moved.png", *left] and len(store.texts) == 0
    assert list(store.skipped) == ["images/5.png"]
    with pytest.raises(AuroraError, match="holds no captions; run aurora index when .* has some"):
        Searcher(store).search(draw("cross", "red"), texts=True)


def test_no_row_is_there_that_nothing_refers_to(album, address, query):
    build(album, address)
    for n in range(4):
        (album / f"images/{n}.png").unlink()
    build(album, address)
    assert query("SELECT count(*) FROM features").fetchone() == (6,)


def test_filters_and_duplicates_as_in_a_folder(album, address, tmp_path):
    for n, year in enumerate((2019, 2020, 2021)):
        place = album / f"trips/{year}"
        place.mkdir(parents=True)
        picture = draw(("circle", "square", "cross")[n], "green")
        exif = picture.getexif()
        exif.get_ifd(0x8769)[0x9003] = f"{year}:07:01 12:00:00"
        picture.save(place / "green.jpg", exif=exif)
    shutil.copy(album / "trips/2019/green.jpg", album / "copy.jpg")
    build(album, address)
    build(album, tmp_path / "album.index")
    ours, theirs = open_store(address), Library(tmp_path / "album.index")
    for words in (
        dict(under="trips"),
        dict(under="trips", after="2020"),
        dict(before="2021-07-01"),
        dict(before="2021-07-01T12:00:01"),
        dict(after="2019-07", before="2019-08"),
        dict(under=album / "images", after="2020"),
    ):
        among = make_filter(album, **words)
        expected = Searcher(theirs).search("a green circle", 99, among=among)
        assert 0 < len(expected) < 14
        assert sorted(hit.what for hit in Searcher(ours).search("a green circle", 99, among=among)) == sorted(
            hit.what for hit in expected
        )
    one, two = Index(address).duplicates(0.999), Index(tmp_path / "album.index").duplicates(0.999)
    assert [[d.path for d in group] for group in one] == [[d.path for d in group] for group in two]
    assert [d.path.name for d in one[0]] == ["copy.jpg", "green.jpg"] and one[0][1].same


def test_a_graph_finds_what_a_scan_finds(both, query, monkeypatch):
    from aurora_petl.search.postgres import build as building
    from aurora_petl.search.postgres import library as reading

    expected = Searcher(both[0]).search("a red circle", 5)
    among = make_filter(both[0].folder, under="images")
    monkeypatch.setattr(building, "SCANNED", 5)
    monkeypatch.setattr(reading, "SCANNED", 5)
    build(both[0].folder, str(both[0].name))
    assert query("SELECT count(*) FROM pg_indexes WHERE indexname = 'features_untuned_graph'").fetchone() == (1,)
    graph = Searcher(open_store(both[0].name))
    assert graph._pictures._has_graph
    same(graph.search("a red circle", 5), expected)
    same(graph.search("a red circle", 5, among=among), expected)


def test_a_server_that_does_not_answer(tmp_path):
    for place in (f"postgresql://me:secret@/db?host={tmp_path}", "postgresql://me:secret@127.0.0.1:1/db"):
        with pytest.raises(AuroraError, match="^postgresql://me@.*does not answer: connection ") as caught:
            open_store(place)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "postgresql://me:se/cret@host/db",
        "postgresql://h/db?password=secret&nonsense=1",
        "postgresql://me:12/3secret@h/d",
    ],
)
def test_an_address_that_is_none_is_not_repeated(place):
    with pytest.raises(
        AuroraError, match="the address of the store can't be read; it has the form postgresql:"
    ) as caught:
        open_store(place)
    assert "cret" not in str(caught.value)


def test_an_address_shows_no_password():
    from aurora_petl.search.postgres.address import parse_address

    for text, shown in {
        "postgres://me:s%40cret@host:5433/db?library=my%20own&sslmode=allow": "me@host:5433/db?library=my%20own",
        "postgresql://me@/db?host=/tmp/here&password=secret": "me@/db?host=/tmp/here",
        "postgresql://[::1]/db": "[::1]/db",
    }.items():
        address = parse_address(text)
        assert str(address) == repr(address) == f"postgresql://{shown}"
    for name in ("", "x" * 57, "a\nb"):
        with pytest.raises(AuroraError, match="can't be called so; name it in the address"):
            address.of(name)


def test_no_library_of_that_name(postgres_server, album, address):
    import psycopg

    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")  # as an earlier library has left it
    with pytest.raises(AuroraError, match=f"^{re.escape(address)}: no such library; make it with aurora index FOLDER"):
        open_store(address)
    build(album, address)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS alone")
        connection.execute("CREATE DATABASE alone")
    alone = postgres_server.replace("/aurora?", "/alone?")
    with pytest.raises(AuroraError, match="/alone.* holds no library; make one with aurora index FOLDER --model"):
        open_store(alone)
    build(album, alone)  # called as the folder is
    assert open_store(alone).name.endswith("&library=album") and len(open_store(alone).pictures) == 10
    build(album, f'{alone}&library=b; DROP SCHEMA "aurora_album" --\'')
    with pytest.raises(AuroraError, match="has 2 libraries: album, b; DROP .*; name one with .library=NAME"):
        open_store(alone)


def test_a_database_without_the_extension(postgres_server, album):
    import psycopg

    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS bare")
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE DATABASE bare")
        connection.execute("CREATE ROLE guest LOGIN")
    bare = postgres_server.replace("/aurora?", "/bare?").replace("aurora@", "guest@")
    with pytest.raises(AuroraError, match="/bare.* holds no library; make one with aurora index FOLDER --model"):
        open_store(bare)
    with pytest.raises(AuroraError, match="/bare.* lacks the extension vector; install pgvector on the server"):
        build(album, bare)


def test_an_extension_that_is_too_old(address, album, monkeypatch):
    from aurora_petl.search.postgres import database

    monkeypatch.setattr(database, "PGVECTOR", (99, 0))
    with pytest.raises(
        AuroraError, match=r"has pgvector 0\.\d+\.\d+; 99.0 or newer is needed: update it on the server"
    ):
        build(album, address)


def test_of_another_model_or_folder(album, address, run, tmp_path):
    build(album, address)
    with pytest.raises(
        AuroraError, match=r"was made with another model than .*run is \(blip-mini\); name another \?lib"
    ):
        build(album, address, str(run))
    other = make_folder(tmp_path / "other", 3, splits=False)
    for path in (other / "images").iterdir():
        path.rename(path.with_stem(f"x{path.stem}"))
    (other / "captions.jsonl").unlink()
    with pytest.raises(
        AuroraError, match=r"is of another folder \(.*album\): of 10 of its pictures .*other has 0; name"
    ):
        build(other, address)
    assert len(open_store(address).pictures) == 10


def test_the_folder_elsewhere(album, address, tmp_path, encoded):
    build(album, address)
    album.rename(tmp_path / "moved")
    with pytest.raises(
        AuroraError, match="pictures of .* are not in .*album; index them where they are on this machine"
    ):
        open_store(address)
    encoded.clear()
    assert build(tmp_path / "moved", address).encoded == 0 and not encoded
    assert open_store(address).folder == tmp_path / "moved"


def test_an_older_schema_and_a_broken_one(album, address, query):
    build(album, address)
    query("UPDATE about SET format = 0")
    for work in (lambda: open_store(address), lambda: build(album, address)):
        with pytest.raises(
            AuroraError, match='has format 0, not 1; remove it with DROP SCHEMA "aurora_.*" CASCADE and run'
        ):
            work()
    query("ALTER TABLE about DROP COLUMN format")
    with pytest.raises(AuroraError, match="has format None, not 1"):
        open_store(address)
    query("DROP TABLE about")
    with pytest.raises(AuroraError, match="is no library, its schema lacks the table about; remove it with DROP"):
        open_store(address)


def test_unfinished(album, address, query):
    build(album, address)
    query("UPDATE about SET finished = NULL")
    with pytest.raises(AuroraError, match="is unfinished; run aurora index again, it goes on where it stopped"):
        open_store(address)


def test_a_path_out_of_the_folder_is_refused(album, address, query):
    build(album, address)
    query("UPDATE pictures SET path = '../../etc/passwd' WHERE path = 'images/3.png'")
    with pytest.raises(AuroraError, match="the store holds '../../etc/passwd', which is no path inside a folder"):
        Searcher(open_store(address)).search("a red circle", 99)


def test_a_connection_that_broke_is_made_anew(album, address, query):
    build(album, address)
    searcher = Searcher(open_store(address))
    before = searcher.search("a red circle", 3)
    query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aurora'")
    assert searcher.search("a red circle", 3) == before


def test_names_that_sql_would_read(album, address):
    names = ["'; DROP TABLE pictures; --.png", "%s {x} %(k)s.png", 'a"b\\c.png', "日本.png"]
    for number, name in enumerate(names):
        (album / f"images/{number}.png").rename(album / "images" / name)
    (album / "captions.jsonl").unlink()
    assert build(album, address).pictures == 10
    assert {Path(path).name for path in paths(open_store(address))} >= set(names)


def test_claims_end_with_the_session(address, album):
    from aurora_petl.search.postgres.address import parse_address
    from aurora_petl.search.postgres.database import Database

    one, two = (Database(parse_address(address), create=True) for _ in range(2))
    assert one.claim(["a", "b"]) == {"a", "b"} and two.claim(["a", "b", "c"]) == {"c"}
    one.release(["a"])
    assert two.claim(["a", "b"]) == {"a"}
    one.close()
    until = time.monotonic() + 10
    while two.claim(["b"]) != {"b"}:
        assert time.monotonic() < until
    two.close()

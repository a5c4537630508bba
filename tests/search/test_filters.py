"""Pictures by folder and date, in a folder's index; `test_postgres` compares a database with it."""

import os
import time
from datetime import datetime

import pytest

from aurora_petl.data.media import taken
from aurora_petl.errors import AuroraError
from aurora_petl.search.filters import Filter, make_filter, parse_date
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.manifest import Picture
from aurora_petl.search.picture_index import Index
from aurora_petl.search.query import Searcher
from tests.helpers.pictures import draw

ORIGINAL = (0x8769, 0x9003)  # where EXIF data say when a picture was taken


def photo(path, when, colour="green"):
    picture = draw("circle", colour)
    exif = picture.getexif()
    exif.get_ifd(ORIGINAL[0])[ORIGINAL[1]] = when
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif)


@pytest.fixture
def trips(tmp_path):
    """Pictures of known dates in folders whose names begin alike."""
    folder = tmp_path / "photos"
    photo(folder / "trip/a.jpg", "2019:07:01 12:00:00")
    photo(folder / "trip/deep/b.jpg", "2020:02:29 00:00:00", "red")
    photo(folder / "trip 2/c.jpg", "2021:01:01 00:00:00", "blue")
    photo(folder / "trip0/d.webp", "nonsense", "black")
    draw("cross", "red").save(folder / "e.png")
    for name, year in {"trip0/d.webp": 2022, "e.png": 2023}.items():
        seconds = time.mktime((year, 6, 1, 0, 0, 0, 0, 0, -1))
        os.utime(folder / name, (seconds, seconds))
    build_index(folder, tmp_path / "photos.index", "blip-mini", progress=False)
    return Library(tmp_path / "photos.index")


def names(library, **words):
    among = make_filter(library.folder, **words)
    return sorted(hit.what for hit in Searcher(library).search("a circle", 99, among=among))


def test_by_folder_and_date(trips):
    every = ["e.png", "trip 2/c.jpg", "trip/a.jpg", "trip/deep/b.jpg", "trip0/d.webp"]
    assert names(trips) == every
    assert names(trips, under=".") == names(trips, under=trips.folder) == every
    assert names(trips, under="trip") == names(trips, under="trip/") == ["trip/a.jpg", "trip/deep/b.jpg"]
    assert names(trips, under="trip/deep") == names(trips, under=trips.folder / "trip/deep") == ["trip/deep/b.jpg"]
    assert names(trips, after="2021") == ["e.png", "trip 2/c.jpg", "trip0/d.webp"]
    assert names(trips, before="2021") == ["trip/a.jpg", "trip/deep/b.jpg"]
    assert names(trips, after="2020-02-29", before="2020-03") == ["trip/deep/b.jpg"]
    assert names(trips, after="2022-06-01", before="2022-06-01T00:01") == ["trip0/d.webp"]
    assert names(trips, under="trip", before="2020") == ["trip/a.jpg"]


def test_under_the_working_folder(trips, monkeypatch):
    monkeypatch.chdir(trips.folder.parent)
    assert names(trips, under="photos/trip 2") == ["trip 2/c.jpg"]
    (trips.folder.parent / "link").symlink_to(trips.folder / "trip")
    assert names(trips, under="link") == ["trip/a.jpg", "trip/deep/b.jpg"]


def test_fewer_than_asked_are_the_best_of_the_filter(trips):
    searcher = Searcher(trips)
    order = [hit.what for hit in searcher.search("a red circle", 99) if hit.what.startswith("trip/")]
    assert [hit.what for hit in searcher.search("a red circle", 1, among=Filter(under="trip"))] == order[:1]
    (trips.folder / order[0]).unlink()
    assert [hit.what for hit in searcher.search("a red circle", 1, among=Filter(under="trip"))] == order[1:]


def test_what_is_refused(trips):
    for words, why in {
        ("under", "nowhere"): "nowhere is no folder in photos; name one as it is called there",
        ("under", ".."): ".. is no folder in photos",
        ("after", "soon"): "after 'soon' is no date; give a year, month or day, such as 2024, 2024-05 or 2024-05-31",
        ("before", "2023-02-29"): "before '2023-02-29' is no date",
        ("after", "2024"): "photos holds no picture after 2024-01-01 00:00:00",
    }.items():
        with pytest.raises(AuroraError, match=why):
            names(trips, **dict([words]))
    with pytest.raises(AuroraError, match="after 2021 does not lie before 2020; exchange them"):
        make_filter(trips.folder, after="2021", before="2020")
    with pytest.raises(AuroraError, match="captions have neither folder nor date; leave out under, after and bef"):
        Searcher(trips).search(draw("cross", "red"), texts=True, among=Filter(under="trip"))


def test_dates_of_clocks_that_were_never_set(tmp_path):
    photo(tmp_path / "photos/first.jpg", "0001:01:01 00:00:00")
    photo(tmp_path / "photos/last.jpg", "9999:12:31 23:59:59", "red")
    build_index(tmp_path / "photos", tmp_path / "photos.index", "blip-mini", progress=False)
    library = Library(tmp_path / "photos.index")
    assert names(library, after="2000") == names(library, after="0002") == ["last.jpg"]
    assert names(library, before="2000") == ["first.jpg"]
    assert names(library, after="0001") == ["first.jpg", "last.jpg"]


def test_files_of_years_that_no_date_has():
    """btrfs and ZFS keep them."""
    years = {2**62: datetime.max, -(2**62): datetime.min, 10**23: datetime.max}
    for nanoseconds, date in years.items():
        picture = Picture("a.png", 1, nanoseconds * 1_000, "0" * 64)
        assert picture.date == date


def test_dates():
    assert parse_date("2024") == datetime(2024, 1, 1) and parse_date("2024-05") == datetime(2024, 5, 1)
    assert parse_date(" 2024-05-31T14:30 ") == datetime(2024, 5, 31, 14, 30)
    for wrong in ("", "24", "2024-5", "0000", "2024-05-31T25:00", "2024-05-31 14", "٢٠٢٤x"):
        with pytest.raises(AuroraError, match="is no date"):
            parse_date(wrong)


def test_exif_that_says_nothing(tmp_path):
    photo(tmp_path / "a.jpg", "2019:07:01 12:00:00")
    data = (tmp_path / "a.jpg").read_bytes()
    assert taken(data) == datetime(2019, 7, 1, 12)
    assert taken(data.replace(b"2019:07:01", b"0000:00:00")) is None
    for wrong in (b"", b"nonsense", data[:40], data[:30] + b"\xff" * 60 + data[90:]):
        assert taken(wrong) is None


def test_from_python(trips):
    index = Index(trips.out)
    assert [hit.path for hit in index.search("a circle", 9, under="trip", after="2020")] == [
        trips.folder / "trip/deep/b.jpg"
    ]

"""The page in Chromium: what it shows of a search, wide and narrow, light and dark."""

import json
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image

from aurora_petl.data.media import load_image
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from tests.helpers.server import TOKEN, started

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")


@pytest.fixture(scope="module")
def client(library):
    client, stop = started(library)
    yield client
    stop()


def browse(client, folder, address, *how):
    """Let Chromium open an address of the page, whose token it turns into a cookie; what it prints."""
    return subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--disable-quic", "--virtual-time-budget=20000"),
            f"--user-data-dir={folder / 'profile'}",
            *how,
            f"http://127.0.0.1:{client.port}/?token={TOKEN}&{address}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HOME": str(folder)},
    ).stdout


def photograph(client, folder, address, size, *how):
    browse(client, folder, address, f"--screenshot={folder / 'page.png'}", f"--window-size={size}", *how)
    with Image.open(folder / "page.png") as file:
        return file.convert("RGB")


def asked(client, address):
    return json.loads(client(f"/api/search?{address}")[2])


def rows(page):
    return re.findall(r'<img src="/thumbnail/(\d+)"', page)


def middle(library, row):
    picture = load_image(library.path(row))
    return picture.getpixel((picture.width // 2, picture.height // 2))


def close(colour, wanted):
    return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 12


def side_by_side(image, colours):
    """Whether two colours stand on one height in the left and the right half of a narrow page."""
    return any(
        all(close(image.getpixel((x, y)), wanted) for x, wanted in zip((100, 286), colours, strict=True))
        for y in range(150, image.height)
    )


def test_the_best_with_scores_and_captions(client, library, tmp_path):
    page = browse(client, tmp_path, "q=a+red+circle&k=6", "--dump-dom")
    answer = asked(client, "q=a+red+circle&k=6")
    found = answer["views"][0]["found"]
    assert rows(page) == [str(hit["row"]) for hit in found] and len(found) == 6
    assert f"{found[0]['score']:.3f}" in page and "; ".join(found[0]["captions"]) in page
    assert "scored by ITC similarity" in page and "pictures 1–6 of 24" in page
    assert TOKEN not in page  # neither in the addresses of pictures nor in links
    assert 'href="/?q=a+red+circle&amp;k=6&amp;page=2"' in page and "Previous" not in page
    second = browse(client, tmp_path, "q=a+red+circle&k=6&page=2", "--dump-dom")
    assert rows(second) == [str(hit["row"]) for hit in asked(client, "q=a+red+circle&k=6&page=2")["views"][0]["found"]]
    assert 'href="/?q=a+red+circle&amp;k=6"' in second and "Page 2" in second

    wide = photograph(client, tmp_path, "q=a+red+circle&k=6", "1240,900")
    colours = {colour for _, colour in wide.getcolors(1 << 20)}
    for hit in found[:4]:  # the first row of the page has the colours of its pictures
        assert any(close(colour, middle(library, hit["row"])) for colour in colours)
    narrow = photograph(client, tmp_path, "q=a+red+circle&k=6", "400,900")
    assert side_by_side(narrow, [middle(library, hit["row"]) for hit in found[:2]])  # two columns on a telephone


def test_before_and_after_side_by_side(client, library, tmp_path):
    address = "q=a+blue+cross&view=both&k=8"
    page = browse(client, tmp_path, address, "--dump-dom")
    before, after = asked(client, address)["views"]
    assert (before["view"], after["view"]) == ("untuned", "tuned")
    assert rows(page) == [str(hit["row"]) for view in (before, after) for hit in view["found"]]
    up = sum(hit["rank_before"] > hit["rank"] for hit in after["found"])
    assert up > 0 and page.count('<li class="up">') == up == len(re.findall(r"moved up from rank \d+</span>", page))
    narrow = photograph(client, tmp_path, address, "400,900")
    assert side_by_side(narrow, [middle(library, view["found"][0]["row"]) for view in (before, after)])


def test_captions_for_a_picture(client, tmp_path):
    page = browse(client, tmp_path, "like=3&find=captions&k=5", "--dump-dom")
    captions = [hit["caption"] for hit in asked(client, "like=3&find=captions&k=5")["views"][0]["found"]]
    assert re.findall(r'title="Pictures for this caption">([^<]+)</a>', page) == captions
    assert 'id="sample" alt="The picture that was asked with" src="/thumbnail/3"' in page


def test_dark_where_the_system_is_dark(client, tmp_path):
    for how, bright in (((), True), (("--blink-settings=preferredColorScheme=0",), False)):
        image = photograph(client, tmp_path, "q=x&k=2", "600,700", *how)
        assert (sum(image.getpixel((5, 690))) > 3 * 128) == bright


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("q=+", "the query is empty; say what to look for"),
        ("picture=gone", "the picture that was asked with is not held any more; give it again"),
    ],
)
def test_errors_are_said_on_the_page(address, message, client, tmp_path):
    page = browse(client, tmp_path, address, "--dump-dom")
    said = re.search(r'<p id="status" role="status" class="wrong">([^<]*)</p>', page)[1]
    assert said.startswith(message) and not rows(page)


def test_pictures_that_are_gone_or_changed(album, tmp_path):
    build_index(album, album.with_suffix(".index"), "blip-mini", progress=False)
    client, stop = started(Library(album.with_suffix(".index")))
    try:
        (album / "images/0.png").unlink()
        (album / "images/1.png").write_bytes(b"something else")
        page = browse(client, tmp_path, "q=a+circle", "--dump-dom")
    finally:
        stop()
    assert len(rows(page)) == 8 and "0" not in rows(page)
    assert page.count("This picture is gone or has changed since it was indexed; run aurora index again.") == 1
    assert "1 picture is gone since they were indexed" in page


def test_nothing_is_wider_than_a_telephone(client, tmp_path):
    address = "q=" + 300 * "x" + "&view=both&k=2"
    image = photograph(client, tmp_path, address, "400,900", "--hide-scrollbars")
    margin = image.crop((392, 0, 400, 900)).getcolors(8 * 900)
    assert len(margin) <= 3  # the grounds of header and page, and the line between them

"""Pages of results: their order, before and after tuning, captions, reranking, and what goes wrong."""

import json
import threading

import pytest

from aurora_petl.errors import AuroraError
from aurora_petl.search import results as module
from aurora_petl.search.captions import captions_of_pictures
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from aurora_petl.search.results import Results
from tests.helpers.pictures import draw
from tests.helpers.server import png


@pytest.fixture(scope="module")
def results(library):
    return Results(library)


def ask(results, **fields):
    return results.answer(results.asked({name: str(value) for name, value in fields.items()}))


def column(answer, view=0):
    return answer["views"][view]["found"]


def test_pages_are_the_order_cut_in_pieces(results, library):
    expected = Searcher(library).search("a green square", 24)
    pages = [ask(results, q="a green square", k=7, page=page) for page in range(1, 6)]
    hits = [hit for page in pages for hit in column(page)]
    assert [hit["row"] for hit in hits] == [hit.row for hit in expected]
    assert [hit["rank"] for hit in hits] == list(range(1, 25))
    assert [(page["previous"], page["next"]) for page in pages] == [(None, 2), (1, 3), (2, 4), (3, None), (4, None)]
    assert [len(column(page)) for page in pages] == [7, 7, 7, 3, 0] and pages[0]["total"] == 24
    assert ask(results, q="a green square", k=8, page=3)["next"] is None  # which ends with the last picture


def test_a_folder_and_dates_narrow_the_pictures(results, library):
    answer = ask(results, q="a circle", k=24, under="images", after="2000")
    assert len(column(answer)) == 24 and answer["total"] is None and answer["next"] is None
    answer = ask(results, q="a circle", under=library.folder / "images", view="both", k=5, page=2)
    assert len(column(answer)) == len(column(answer, 1)) == 5
    with pytest.raises(AuroraError, match="holds no picture before 2000-01-01"):
        ask(results, q="a circle", before="2000")
    with pytest.raises(AuroraError, match="no folder in"):
        ask(results, q="a circle", under="..")
    with pytest.raises(AuroraError, match="no date"):
        ask(results, q="a circle", after="soon")
    with pytest.raises(AuroraError, match="captions have neither folder nor date"):
        ask(results, like=0, find="captions", under="images")
    assert ask(results, like=0, find="captions", under="")["total"]  # an empty field asks for nothing


def test_pages_end(results, monkeypatch):
    monkeypatch.setattr(module, "DEEPEST", 15)
    assert ask(results, q="x", k=7, page=2)["next"] is None
    with pytest.raises(AuroraError, match="page is 3; it must be a number from 1 to 2"):
        ask(results, q="x", k=7, page=3)


def test_each_picture_has_its_captions(results, library):
    lines = [json.loads(line) for line in (library.folder / "captions.jsonl").read_text().splitlines()]
    captions = {line["image"]: line["caption"] for line in lines}
    hits = column(ask(results, q="a circle", k=24))
    assert len(hits) == 24 and all(hit["captions"] == captions[hit["path"]] for hit in hits)


def test_captions_of_pictures_by_other_names(album):
    names = ["./images/0.png", "images//0.png", str(album / "images/0.png")]
    rows = [json.dumps({"image": name, "caption": str(number)}) for number, name in enumerate(names)]
    (album / "captions.jsonl").write_text("\n".join(rows))
    assert captions_of_pictures(album) == ({"images/0.png": ("0", "1", "2")}, "")
    (album / "captions.jsonl").write_text("{}\n")
    captions, note = captions_of_pictures(album)
    assert captions == {} and note.startswith("captions are left out: album/captions.jsonl, line 1: ")
    (album / "captions.jsonl").unlink()
    assert captions_of_pictures(album) == ({}, "")


def test_before_and_after(results, library):
    untuned, tuned = (Searcher(library, view).search("a blue cross", 24) for view in ("untuned", "tuned"))
    answer = ask(results, q="a blue cross", view="both", k=6, page=2)
    assert [view["view"] for view in answer["views"]] == ["untuned", "tuned"] and answer["compared"] == 24
    assert [hit["row"] for hit in column(answer)] == [hit.row for hit in untuned[6:12]]
    assert [hit["row"] for hit in column(answer, 1)] == [hit.row for hit in tuned[6:12]]
    ranks = {hit.row: rank for rank, hit in enumerate(untuned, 1)}
    assert [hit["rank_before"] for hit in column(answer, 1)] == [ranks[hit.row] for hit in tuned[6:12]]
    assert "rank_before" not in column(answer)[0] and ranks[tuned[6].row] != 7


def test_ranks_are_compared_so_deep(results, monkeypatch):
    full = {hit["row"]: hit["rank_before"] for hit in column(ask(results, q="a red square", view="both", k=4), 1)}
    fresh = Results(results.library)
    monkeypatch.setattr(module, "COMPARED", 3)
    answer = ask(fresh, q="a red square", view="both", k=4)
    assert answer["compared"] == 5
    expected = [rank if rank <= 5 else None for rank in full.values()]
    assert [hit["rank_before"] for hit in column(answer, 1)] == expected and None in expected


def test_reranked_results_are_those_of_search(results, library, monkeypatch):
    expected = Searcher(library).search("a yellow circle", 9, rerank=9)
    calls = []
    search = Searcher.search
    monkeypatch.setattr(Searcher, "search", lambda *given, **how: calls.append(how) or search(*given, **how))
    pages = [ask(results, q="a yellow circle", rerank=9, k=5, page=page) for page in (1, 2)]
    assert [hit["row"] for page in pages for hit in column(page)] == [hit.row for hit in expected]
    scores = [hit["score"] for page in pages for hit in column(page)]
    assert scores == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert pages[0]["views"][0]["score"] == "ITM match logit of the 9 best by ITC"
    assert pages[0]["total"] == 9 and (pages[0]["next"], pages[1]["next"]) == (2, None)
    assert len(calls) == 1  # the pages of one order


def test_captions_by_picture_and_what_is_like_it(results, library):
    picture = draw("circle", "red")  # row 0 of the library
    answer = ask(results, like=0, find="captions", k=4)
    expected = Searcher(library).search(picture, 4, texts=True)
    assert [hit["caption"] for hit in column(answer)] == [hit.what for hit in expected] and answer["total"] == 48
    best = Searcher(library).search(picture, 4, texts=True, rerank=6)
    assert [hit["caption"] for hit in column(ask(results, like=0, find="captions", k=4, rerank=6))] != []
    assert best[0].what == column(ask(results, like=0, find="captions", k=4, rerank=6))[0]["caption"]
    hits = column(ask(results, like=0, k=3))
    assert hits[0]["row"] == 0 and hits[0]["score"] == pytest.approx(1, abs=1e-3)


def test_a_picture_that_was_sent_has_pages(results):
    name = results.keep(png(draw("cross", "green")))
    first, second = (ask(results, picture=name, k=5, page=page) for page in (1, 2))
    assert column(first)[0]["score"] == pytest.approx(1, abs=1e-3) and second["query"]["picture"] == name
    assert not {hit["row"] for hit in column(first)} & {hit["row"] for hit in column(second)}


def test_pictures_are_held_as_long_as_there_is_room(results, monkeypatch):
    monkeypatch.setattr(module, "UPLOADS", 25)
    names = [results.keep(letter * 10) for letter in (b"a", b"b")]
    assert results.upload(names[0]) == b"a" * 10  # and is the newest again
    names.append(results.keep(b"c" * 10))
    assert results.upload(names[0]) and results.upload(names[2])
    with pytest.raises(AuroraError, match="is not held any more; give it again"):
        results.upload(names[1])
    large = results.keep(b"d" * 99)
    assert results.upload(large) == b"d" * 99  # a single one always


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing is asked; give one of q (words), like (a row) and picture (one that was sent)"),
        ({"q": "x", "like": "1"}, "q and like are given; give one of"),
        ({"q": "x", "find": "words"}, "find is 'words'; choose pictures or captions"),
        ({"q": "x", "find": "captions"}, "captions are found by a picture; give one, or find pictures"),
        ({"q": "x", "view": "all"}, "no view 'all'; choose one of tuned, untuned, both"),
        ({"q": "x", "rerank": "201"}, "rerank is 201; it must be a number from 0 to 200"),
        ({"q": "x", "rerank": "-1"}, "rerank is -1; it must be a number from 0 to 200"),
        ({"q": "x", "page": "0"}, "page is 0; it must be a number from 1 to 83"),
        ({"q": "x", "page": "84"}, "page is 84; it must be a number from 1 to 83"),
        ({"like": "24"}, "like is 24, and no picture has this row"),
        ({"like": "1e9"}, "like is 1e9; it must be a number from 0 to 999999999"),
        ({"like": "0", "rerank": "5"}, "ITM scores a picture with a text, not two pictures"),
        ({"picture": "x"}, "the picture that was asked with is not held any more"),
    ],
)
def test_wrong_fields(fields, message, results):
    with pytest.raises(AuroraError) as error:
        results.answer(results.asked(fields))
    assert str(error.value).startswith(message)


def test_a_stale_index_says_so(album):
    out = album.with_suffix(".index")
    build_index(album, out, "blip-mini", progress=False)
    results = Results(Library(out))
    assert results.views == ["untuned"] and ask(results, q="a circle")["notes"] == []
    (album / "images/3.png").unlink()
    notes = ask(results, q="a cross")["notes"]
    assert notes == ["1 picture is gone since they were indexed and left out; run aurora index again"]
    (album / "images/4.png").write_bytes(b"another")
    with pytest.raises(AuroraError, match=r"4\.png has changed since it was indexed; run aurora index again"):
        ask(results, like=[picture.path for picture in results.library.pictures].index("images/4.png"))
    build_index(album, out, "blip-mini", progress=False)
    assert ask(results, q="a cross")["notes"][1].startswith("the index was updated since aurora serve started; start")
    for path in (album / "images").iterdir():
        path.unlink()
    with pytest.raises(AuroraError, match="holds none of the pictures any more"):
        ask(results, q="something else")


def test_threads_share_it(library):
    queries = [
        dict(q=f"a {colour} {shape}", view="both", k=5) for colour in ("red", "blue") for shape in ("cross", "x")
    ]
    queries += [dict(like=row, find="captions", k=5, rerank=6) for row in range(4)]
    alone = [ask(Results(library), **query) for query in queries]
    shared, answers = Results(library), [None] * 16

    def work(number):
        answers[number] = ask(shared, **queries[number % len(queries)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, answer in enumerate(answers):
        for one, other in zip(answer["views"], alone[number % len(queries)]["views"], strict=True):
            assert [hit["row"] for hit in one["found"]] == [hit["row"] for hit in other["found"]]
            assert [hit["score"] for hit in one["found"]] == pytest.approx(
                [hit["score"] for hit in other["found"]], abs=1e-5
            )

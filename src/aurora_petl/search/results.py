"""What the page and its API answer: pages of results of one model, or of the untuned and the tuned one side by side."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..data.media import load_image
from ..errors import AuroraError, short
from .captions import captions_of_pictures
from .encoder import TUNED, UNTUNED
from .filters import ALL, Filter, make_filter
from .query import Found, Searcher
from .shards import digest
from .store import Store

BOTH = "both"
PAGE, MOST = 24, 200  # results a page: without a wish, and at most
DEEPEST = 2_000  # results that the pages of a query lead to
RERANKED = 200  # at most
COMPARED = 200  # ranks that are looked up in the results of the other model
UPLOADS = 256 * 1024**2  # bytes of pictures that were sent, as long as newer ones leave them room
REMEMBERED = 64  # orders of results


@dataclass(frozen=True)
class Asked:
    """One request for results.

    Args:
        text: what to look for; or
        row: the row of a picture of the index, or
        picture: the name of one that was sent, from `Results.keep`.
        view: ``tuned``, ``untuned`` or ``both``.
        captions: whether captions are looked for, not pictures.
        rerank: how many of the best are ordered by ITM, which are then all the results; 0 leaves them to ITC.
        size: results a page.
        page: from 1.
        among: the pictures that come into question.
    """

    text: str | None
    row: int | None
    picture: str | None
    view: str
    captions: bool
    rerank: int
    size: int
    page: int
    among: Filter = ALL


class Results:
    """Answers to queries against one index. Threads may share it.

    Raises:
        AuroraError: if the index or its model can't be used.
    """

    def __init__(self, library: Store) -> None:
        self.library = library
        self.searchers = {view: Searcher(library, view, kind="auto") for view in library.keys}
        self.views = [*self.searchers, *([BOTH] if len(self.searchers) > 1 else [])]
        self.reranks = all(searcher.encoder.matches for searcher in self.searchers.values())
        self.captions, self._note = captions_of_pictures(library.folder)
        self._begun = self.library.stamp()
        self._uploads: OrderedDict[str, bytes] = OrderedDict()
        self._orders: OrderedDict[tuple, tuple[int, list[Found]]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, data: bytes) -> str:
        """Hold a picture that was sent, so that its pages of results can be asked for by the name returned."""
        name = digest(data)[:32]
        with self._lock:
            self._uploads[name] = data
            self._uploads.move_to_end(name)
            while len(self._uploads) > 1 and sum(map(len, self._uploads.values())) > UPLOADS:
                self._uploads.popitem(last=False)
        return name

    def upload(self, name: str) -> bytes:
        """A picture that was sent.

        Raises:
            AuroraError: if it is not held, or not any more.
        """
        with self._lock:
            if (data := self._uploads.get(name)) is None:
                raise AuroraError("the picture that was asked with is not held any more; give it again")
            self._uploads.move_to_end(name)
            return data

    def asked(self, fields: Mapping[str, str], text: str | None = None, picture: str | None = None) -> Asked:
        """A request from the fields of an address, with ``text`` or ``picture`` if the query was sent in its body.

        Raises:
            AuroraError: if a field is wrong, or there is not one query.
        """
        row = None
        if text is None and picture is None:
            given = [name for name in ("q", "like", "picture") if name in fields]
            if len(given) != 1:
                named = f"{' and '.join(given)} are given" if given else "nothing is asked"
                raise AuroraError(f"{named}; give one of q (words), like (a row) and picture (one that was sent)")
            text, picture = fields.get("q"), fields.get("picture")
            row = self._row(fields) if "like" in fields else None
        view, find = fields.get("view", self.views[0]), fields.get("find", "pictures")
        if view not in self.views:
            raise AuroraError(f"no view {short(view)}; choose one of {', '.join(self.views)}")
        if find not in ("pictures", "captions"):
            raise AuroraError(f"find is {short(find)}; choose pictures or captions")
        captions = find == "captions"
        if captions and text is not None:
            raise AuroraError("captions are found by a picture; give one, or find pictures")
        rerank, size = _number(fields, "rerank", 0, RERANKED, 0), _number(fields, "k", 1, MOST, PAGE)
        if rerank and not self.reranks:
            raise AuroraError("the model of this index has no second stage to rerank with; leave out rerank")
        if rerank and text is None and not captions:
            raise AuroraError("ITM scores a picture with a text, not two pictures; leave out rerank or find captions")
        page = _number(fields, "page", 1, DEEPEST // size, 1)
        limits = {name: fields.get(name) or None for name in ("under", "after", "before")}
        among = make_filter(self.library.folder, **limits)
        return Asked(text, row, picture, view, captions, rerank, size, page, among)

    def _row(self, fields: Mapping[str, str]) -> int:
        """The row of a picture that the results shall be like. Those of a database have gaps."""
        row = _number(fields, "like", 0, 10**9 - 1, 0)
        try:
            self.library.pictures[row]
        except IndexError as error:
            raise AuroraError(f"like is {row}, and no picture has this row; take that of a result") from error
        return row

    def answer(self, asked: Asked) -> dict[str, Any]:
        """One page of results, as docs/search.md has its fields.

        Raises:
            AuroraError: see `query.Searcher.search`, or if a picture that was asked with is gone.
        """
        total = len(self.library.texts if asked.captions else self.library.pictures)
        total = min(total, asked.rerank or total)
        query = asked.text if asked.text is not None else self._image(asked)
        both = asked.view == BOTH
        first, end = (asked.page - 1) * asked.size, asked.page * asked.size
        want = max(end + 1, COMPARED) if both else end + 1
        views = list(self.searchers) if both else [asked.view]
        orders = {view: self._order(view, asked, query, want) for view in views}
        before = {hit.row: rank for rank, hit in enumerate(orders[UNTUNED], 1)} if both else {}
        columns = []
        for view in reversed(views):  # the untuned one first, as time goes
            hits = [self._hit(hit, rank, asked) for rank, hit in enumerate(orders[view][first:end], first + 1)]
            if both and view == TUNED:
                hits = [{**hit, "rank_before": before.get(hit["row"])} for hit in hits]
            scored = self.searchers[view].scored_by(asked.rerank, asked.rerank)
            columns.append({"view": view, "score": scored, "found": hits})
        more = end < DEEPEST // asked.size * asked.size and any(len(order) > end for order in orders.values())
        return {
            "query": {"text": asked.text, "like": asked.row, "picture": asked.picture},
            "find": "captions" if asked.captions else "pictures",
            "rerank": asked.rerank,
            "page": asked.page,
            "k": asked.size,
            "previous": asked.page - 1 or None,
            "next": asked.page + 1 if more else None,
            "total": None if asked.among else total,  # how many a filter leaves is not counted
            "compared": min(want, total) if both else None,
            "notes": self._notes(),
            "views": columns,
        }

    def about(self) -> dict[str, Any]:
        """What there is to search, and how."""
        return {
            "pictures": len(self.library.pictures),
            "captions": len(self.library.texts),
            "folder": self.library.folder.name,
            "views": self.views,
            "rerank": RERANKED if self.reranks else 0,
            "notes": self._notes(),
        }

    def _hit(self, hit: Found, rank: int, asked: Asked) -> dict[str, Any]:
        about = {"rank": rank, "row": hit.row, "score": hit.score}
        if asked.captions:
            return {**about, "caption": hit.what}
        return {**about, "path": hit.what, "captions": list(self.captions.get(hit.what, ()))}

    def _order(self, view: str, asked: Asked, query: str | Image.Image, want: int) -> list[Found]:
        """At least the ``want`` best, if there are so many; pages of one query share it."""
        want = asked.rerank or want
        key = (view, asked.text, asked.row, asked.picture, asked.captions, asked.rerank, asked.among)
        with self._lock:
            depth, order = self._orders.get(key, (0, []))
        if depth < want:
            order = self.searchers[view].search(
                query, want, texts=asked.captions, rerank=asked.rerank, among=asked.among
            )
            with self._lock:
                self._orders[key] = want, order
                self._orders.move_to_end(key)
                while len(self._orders) > REMEMBERED:
                    self._orders.popitem(last=False)
        return order

    def _image(self, asked: Asked) -> Image.Image:
        if asked.picture is not None:
            return load_image(self.upload(asked.picture), "the picture")
        assert asked.row is not None
        return self.library.picture(asked.row)

    def _notes(self) -> list[str]:
        notes = [self._note] if self._note else []
        if gone := len(self.library.gone):
            count = "1 picture is" if gone == 1 else f"{gone:,} pictures are"
            notes.append(f"{count} gone since they were indexed and left out; run aurora index again")
        if self.library.stamp() != self._begun:
            notes.append("the index was updated since aurora serve started; start it again to search what is new")
        return notes


def _number(fields: Mapping[str, str], name: str, least: int, most: int, default: int) -> int:
    """A field that is a number.

    Raises:
        AuroraError: if it is none, or out of bounds.
    """
    told = fields.get(name, str(default))
    if not (told.isascii() and told.isdecimal() and len(told) < 10 and least <= int(told) <= most):
        raise AuroraError(f"{name} is {short(told).strip(chr(39))}; it must be a number from {least} to {most}")
    return int(told)

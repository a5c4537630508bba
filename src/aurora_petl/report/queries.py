"""A table of all queries of a split with what models made of them, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ..evaluation.outcome import Outcome
from ..files import whole


def write_queries(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write a row for every query: what is asked, what is right, and the result of each model.

    Columns of retrieval are ``direction``, ``query`` (a text or a picture's file), ``right`` (all right answers, with
    `` | `` between them), and for every model ``rank_NAME`` of the best right answer and ``first_NAME``, what stands
    first. Columns of questions are ``picture``, ``question``, ``right``, ``score_NAME`` (in [0, 1], empty if it is not
    known) and ``answer_NAME``.

    Args:
        outcomes: of the same split, by the models' names.

    Raises:
        OSError: if there is no room or no right to write.
    """
    asked = next(iter(outcomes.values())).asked()
    results = {name.replace("-", "_").replace(" ", "_"): outcome.results() for name, outcome in outcomes.items()}
    rows = [
        row | {f"{key}_{name}": value for name, own in results.items() for key, value in own[place].items()}
        for place, row in enumerate(asked)
    ]
    with whole(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

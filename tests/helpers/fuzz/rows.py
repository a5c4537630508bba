"""Bad caption and question files of one's own pictures."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import unicodedata
from pathlib import Path
from random import Random
from typing import Any

from .case import Case, Check, Draw, Expectation, accept, refuse
from .damage import DEEP, DIGITS, POINTER, put
from .ground import tar


def copy(draw: Draw, source: Path, name: str = "album") -> Path:
    folder = draw.folder / name
    shutil.copytree(source, folder, symlinks=True)
    return folder


def dry(draw: Draw, data: Any, *words: str, model: Path | None = None) -> list[Any]:
    """Words of a dry run."""
    more = ("--out", "out", "--dry-run", "--quiet", "train.batch_size=2")
    return ["train", "--data", data, "--model", model or draw.ground.model, *more, *words]


def table(text: str) -> dict[str, str]:
    """Pictures and texts by split, as a dry run prints them."""
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: " ".join(row[1:]) for row in rows if row and row[0] in ("train", "validation", "test")}


def same_table(draw: Draw, source: Path, *words: str, model: Path | None = None) -> Check:
    """The dry run counts what it counts of the undamaged files."""
    expected = table(draw.ground.printed(*map(str, dry(draw, source, *words, model=model))))

    def check(outcome: Any) -> str | None:
        found = table(outcome.out)
        return None if found == expected else f"rows {found}, of the undamaged files {expected}"

    return check


# JSONL: what stands in the place of a field, by field, with what must come of it

GOOD_ID = ('"7"', "7", '"\\u00e9"')
FIELDS: dict[str, list[str]] = {
    "caption": [
        *("null", "5", "true", "[]", '[""]', '"   "', '""', '{"a": 1}', "[1]", "[[]]", '["a", null]', DIGITS, DEEP),
        *(r'"\ud83d a circle"', r'["a", "\udc00"]', "NaN"),
    ],
    "image": [
        *("null", "5", '""', '" "', '"/etc/passwd"', '"../x.png"', '"images/../../x.png"', '"images"', "[]", "{}"),
        *('"images/nothing.png"', '"images/0.PNG"', r'"images/0.png\u0000"', r'"\ud800.png"', r'"images/\n0.png"'),
        *(r'"\u001b[2J.png"', f'"{"y" * 5000}.png"', '"https://example.org/1.png"', '"."', DIGITS),
    ],
    "split": ['"val"', '"TRAIN"', "5", '["train"]', '{"a": 1}', "true", '"dev"', r'"\ud800"', f'"{"y" * 5000}"', "1.5"],
    "id": ["[]", "{}", '""', '" "', "1.5", "NaN", DIGITS, r'"\ud800"', "null"],
}
BAD_FIELDS = [(key, text) for key, texts in FIELDS.items() for text in texts]
LINES = {  # a whole line
    "two values": lambda line: line + line,
    "single quotes": lambda line: line.replace('"', "'"),
    "list": lambda line: "[1]",
    "text": lambda line: '"x"',
    "number": lambda line: "5",
    "null": lambda line: "null",
    "deep": lambda line: DEEP,
    "comma": lambda line: line + ",",
    "no image": lambda line: '{"caption": "a circle"}',
    "no caption": lambda line: '{"image": "images/0.png"}',
    "latin-1": lambda line: line.encode().replace(b"circle", b"c\xecrcle").replace(b"square", b"squ\xe4re") + b"\xe4",
    "NUL": lambda line: line[:10] + "\0" + line[10:],
    "mark inside": lambda line: "\ufeff" + line,
    "clip": lambda line: '{"clip": "images/0.png", "caption": "x", "split": "train"}',
    "control": lambda line: line.replace("a ", "a \x1b[31m"),
}


def captions_jsonl(draw: Draw) -> Case:
    folder = copy(draw, draw.ground.album)
    file = folder / "captions.jsonl"
    lines: list[Any] = file.read_text().splitlines()
    row = draw.rng.randrange(1, len(lines))
    expects: Expectation = refuse(f"line {row + 1}:")
    kind = draw.number % 4
    if kind < 2:
        key, text = draw.one_of(BAD_FIELDS, 4, "field", 2)
        value = json.loads(lines[row])
        lines[row] = json.dumps({**value, key: "@@"}).replace('"@@"', text)
        about = f"{key}: {text[:40]}"
    elif kind == 2:
        about = draw.one_of(list(LINES), 4, "line")
        lines[row] = LINES[about](lines[row])
    else:
        about = "a line cut"
        lines[row] = lines[row][: draw.rng.randrange(1, len(lines[row]) - 1)]
    file.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    data: Path = folder
    if draw.number % 5 == 4:
        data = tar(folder, draw.folder / "album.tar")
    if draw.number % 7 == 3 and about != "clip" and not about.startswith("image"):  # an index does without the missing
        return Case(about, ["index", folder, "--model", draw.ground.model, "--out", "out", "--quiet"], expects)
    return Case(about, dry(draw, data), expects)


# whole files and folders


def _rename(folder: Path, rng: Random, name: str) -> None:
    """One picture by another name, in the file as well."""
    os.rename(folder / "images/0.png", folder / "images" / name)
    file = folder / "captions.jsonl"
    file.write_text(file.read_text().replace('"images/0.png"', json.dumps(f"images/{name}")))


def _lines(folder: Path, change: Any) -> None:
    file = folder / "captions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def _bytes(change: Any) -> Any:
    def harm(folder: Path, rng: Random) -> None:
        file = folder / "captions.jsonl"
        file.write_bytes(change(file.read_bytes()))

    return harm


def _nfd(folder: Path, rng: Random) -> None:
    _rename(folder, rng, unicodedata.normalize("NFC", "café.png"))
    os.rename(folder / "images/café.png", folder / "images" / unicodedata.normalize("NFD", "café.png"))


def _linked(folder: Path, rng: Random) -> None:
    os.rename(folder / "images", folder / ".elsewhere")
    (folder / "images").symlink_to(".elsewhere")


def _place(kind: str) -> Any:
    return lambda folder, rng: put(folder / "captions.jsonl", kind)


def _one_split(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "split": "train"} for row in rows]


SAME, NAMED = "same", "captions.jsonl"
FILES: dict[str, tuple[Any, str]] = {  # how, and what a refusal names; SAME: it must be taken, with the same counts
    "empty": (_bytes(lambda data: b""), NAMED),
    "blank lines": (_bytes(lambda data: b"\n \n\t\n"), NAMED),
    "utf-16": (_bytes(lambda data: data.decode().encode("utf-16")), NAMED),
    "byte order mark": (_bytes(lambda data: b"\xef\xbb\xbf" + data), SAME),
    "CRLF": (_bytes(lambda data: data.replace(b"\n", b"\r\n")), SAME),
    "blank lines between": (_bytes(lambda data: data.replace(b"\n", b"\n\n  \n")), SAME),
    "no last line end": (_bytes(lambda data: data.rstrip()), SAME),
    "other fields": (
        lambda folder, rng: _lines(folder, lambda rows: [{**r, "about": [1, {"a": 2}]} for r in rows]),
        SAME,
    ),
    "numbers as ids": (
        lambda folder, rng: _lines(folder, lambda rows: [{**r, "id": n} for n, r in enumerate(rows)]),
        SAME,
    ),
    "pointer": (_bytes(lambda data: POINTER), NAMED),
    "random": (_bytes(lambda data: bytes(range(256)) * 4), NAMED),
    "a JSON list": (_bytes(lambda data: b"[" + data.replace(b"\n", b",")[:-1] + b"]"), NAMED),
    "some splits": (
        lambda folder, rng: _lines(
            folder, lambda rows: [{k: v for k, v in rows[0].items() if k != "split"}, *rows[1:]]
        ),
        "line 1",
    ),
    "one split": (lambda folder, rng: _lines(folder, _one_split), "split"),
    "twice, other split": (
        lambda folder, rng: _lines(folder, lambda rows: [*rows, {**rows[0], "split": "test"}]),
        "line 25",
    ),
    "twice, other id": (
        lambda folder, rng: _lines(folder, lambda rows: [*rows, {**rows[0], "id": "other"}]),
        "line 25",
    ),
    "two pictures": (lambda folder, rng: _lines(folder, lambda rows: rows[:2]), "split"),
    "no pictures": (lambda folder, rng: shutil.rmtree(folder / "images"), "line 1"),
    "one picture gone": (lambda folder, rng: (folder / "images/4.png").unlink(), "images/4.png"),
    "folder": (_place("folder"), NAMED),
    "pipe": (_place("pipe"), NAMED),
    "link to nothing": (_place("link to nothing"), NAMED),
    "link to itself": (_place("link to itself"), NAMED),
    "nothing": (_place("nothing"), NAMED),
    "linked pictures": (_linked, SAME),
    "name with accent, two ways": (_nfd, SAME),
    "name with quotes": (lambda folder, rng: _rename(folder, rng, 'a\'b "c".png'), SAME),
    "name with line end": (lambda folder, rng: _rename(folder, rng, "a\nb.png"), SAME),
    "name with escape": (lambda folder, rng: _rename(folder, rng, "a\x1b[31m.png"), SAME),
}


def caption_files(draw: Draw) -> Case:
    folder = copy(draw, draw.ground.album)
    about = draw.one_of(list(FILES))
    harm, names = FILES[about]
    harm(folder, draw.rng)
    expects = accept(same_table(draw, draw.ground.album)) if names == SAME else refuse(names)
    return Case(about, dry(draw, folder), expects)


# CSV

CSV = {
    "comma": (lambda text, n: _row(text, n, lambda row: row.replace('"', "").replace(", ", ","), quote=True), "line"),
    "open quote": (lambda text, n: _row(text, n, lambda row: row.replace(",", ',"', 1)), "line"),
    "quote inside": (lambda text, n: _row(text, n, lambda row: row.replace(" ", ' "x" ', 1) + '"'), "line"),
    "few fields": (lambda text, n: _row(text, n, lambda row: row.split(",")[0]), "line"),
    "many fields": (lambda text, n: _row(text, n, lambda row: row + ",x,y"), "line"),
    "no caption": (lambda text, n: _row(text, n, lambda row: f"{row.split(',')[0]},,train"), "line"),
    "no image": (lambda text, n: _row(text, n, lambda row: ",a circle,train"), "line"),
    "odd split": (lambda text, n: _row(text, n, lambda row: f"{row.split(',')[0]},a circle,tset"), "line"),
    "header quote": (lambda text, n: text.replace("caption", 'cap"tion', 1), "line 1"),
    "header open quote": (lambda text, n: '"' + text, "line 1"),
    "header twice": (lambda text, n: text.replace("split", "caption", 1), "line 1"),
    "no header": (lambda text, n: text.split("\n", 1)[1], "line 1"),
    "captions": (lambda text, n: text.replace("caption", "captions", 1), "line 1"),
    "semicolons": (lambda text, n: text.replace(",", ";"), "line 1"),
    "tabs": (lambda text, n: text.replace(",", "\t"), "line 1"),
    "upper case header": (lambda text, n: text.replace("image", "IMAGE", 1), "line 1"),
    "NUL": (lambda text, n: _row(text, n, lambda row: row + "\0"), "line"),
    "huge field": (lambda text, n: _row(text, n, lambda row: f"{row.split(',')[0]},{'y' * 200_000},train"), "line"),
    "header alone": (lambda text, n: text.split("\n")[0] + "\n", "captions.csv"),
    "empty": (lambda text, n: "", "captions.csv"),
    "latin-1": (lambda text, n: text.encode().replace(b"a red", b"\xe4 red"), "captions.csv"),
    "utf-16": (lambda text, n: text.encode("utf-16"), "captions.csv"),
    "pointer": (lambda text, n: POINTER, "captions.csv"),
    "missing picture": (lambda text, n: _row(text, n, lambda row: "images/zz.png,a circle,train"), "line"),
    "absolute": (lambda text, n: _row(text, n, lambda row: "/etc/passwd,a circle,train"), "line"),
    "escape in name": (lambda text, n: _row(text, n, lambda row: "\x1b[2J.png,a circle,train"), "line"),
    "other split": (
        lambda text, n: _row(
            text, n, lambda row: f"{row.split(',')[0]},a circle,{'test' if row.endswith('train') else 'train'}"
        ),
        "line",
    ),
    "byte order mark": (lambda text, n: "\ufeff" + text, SAME),
    "CRLF": (lambda text, n: text.replace("\n", "\r\n"), SAME),
    "all quoted": (
        lambda text, n: "\n".join(
            ",".join(f'"{f}"' for f in next(csv.reader([row]))) for row in text.split("\n") if row
        ),
        SAME,
    ),
    "line end in caption": (
        lambda text, n: _row(
            text,
            n,
            lambda row: (
                row.replace(",a ", ',"a\n', 1).replace(f",{row.rpartition(',')[2]}", f'",{row.rpartition(",")[2]}')
                if ",a " in row
                else row
            ),
        ),
        SAME,
    ),
    "blank rows": (lambda text, n: text.replace("\n", "\n\n"), SAME),
    "another column": (
        lambda text, n: "\n".join(row + (",note" if k == 0 else ",x") for k, row in enumerate(text.split("\n")) if row),
        SAME,
    ),
}


def _row(text: str, number: int, change: Any, quote: bool = False) -> str:
    """With one line changed; with ``quote`` one whose caption has a comma, and then unquoted."""
    rows = text.split("\n")
    chosen = [n for n, row in enumerate(rows) if row and n and (('"' in row) == quote)]
    place = chosen[number % len(chosen)]
    rows[place] = change(rows[place])
    return "\n".join(rows)


def captions_csv(draw: Draw) -> Case:
    folder = copy(draw, draw.ground.album)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    (folder / "captions.jsonl").unlink()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "caption", "split"])
    writer.writerows([row["image"], caption, row["split"]] for row in rows for caption in row["caption"])
    about = draw.one_of(list(CSV))
    change, names = CSV[about]
    changed = change(text.getvalue(), draw.rng.randrange(100))
    (folder / "captions.csv").write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    expects = accept(same_table(draw, draw.ground.album)) if names == SAME else refuse(names)
    data = tar(folder, draw.folder / "album.tar") if draw.number % 6 == 5 else folder
    return Case(about, dry(draw, data), expects)


# questions

ANSWERS = [
    *('""', '" "', "[]", "{}", "5", "true", "[1]", '["a", null]', '{"a": 0}', '{"a": -1}', '{"a": NaN}'),
    *('{"a": "x"}', '{"": 1}', '{"a": 1e999}', '{"a": true}', r'"\ud800"', f'{{"a": {DIGITS}}}', DEEP),
]
QUESTIONS = ["null", "5", '""', '" "', "[]", '["a"]', "{}", r'"\udfff"', DIGITS]
BAD_ASKED = (
    [("answer", text) for text in ANSWERS]
    + [("question", text) for text in QUESTIONS]
    + [("image", text) for text in FIELDS["image"][:8]]
    + [("split", text) for text in FIELDS["split"][:4]]
    + [("id", text) for text in FIELDS["id"][:6]]
)


def questions(draw: Draw) -> Case:
    folder = copy(draw, draw.ground.questions)
    file = folder / "questions.jsonl"
    lines = file.read_text().splitlines()
    row = draw.rng.choice([n for n, line in enumerate(lines) if '"train"' in line])
    more, model = ("task.name=vqa",), draw.ground.answerer
    if draw.number % 8 == 7:
        chosen = draw.rng.choice(["same id", "no answer", "all ids", "no test answers"])
        values = [json.loads(line) for line in lines]
        expects: Expectation = refuse("line")
        if chosen == "same id":
            values = [{**value, "id": "1" if n < 2 else n} for n, value in enumerate(values)]
        elif chosen == "no answer":
            del values[row]["answer"]
        elif chosen == "all ids":
            values = [{**value, "id": n} for n, value in enumerate(values)]
            expects = accept(same_table(draw, draw.ground.questions, *more, model=model))
        else:
            for value in values:
                if value["split"] == "test":
                    del value["answer"]
            expects = accept(lambda outcome: None if table(outcome.out).get("test") == "3 6 0" else outcome.out[:300])
        file.write_text("".join(json.dumps(value) + "\n" for value in values))
        return Case(chosen, dry(draw, folder, *more, model=model), expects)
    key, text = draw.one_of(BAD_ASKED)
    lines[row] = json.dumps({**json.loads(lines[row]), key: "@@"}).replace('"@@"', text)
    file.write_text("\n".join(lines) + "\n")
    return Case(f"{key}: {text[:40]}", dry(draw, folder, *more, model=model), refuse(f"line {row + 1}"))

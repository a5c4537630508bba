"""Where the pretraining pictures and the packs come from, and how they become (picture, words) pairs.

Sources, all freely redistributable:

- Open Clip Art 0.18 (Debian ``openclipart-svg``; public domain): titles and keywords from each SVG's RDF,
  folder names where titles say little.
- Noto emoji of today and of its first years (npm ``@iconify-json/noto``, ``-v1``; Apache-2.0), Twemoji and EmojiOne 2
  (npm ``@iconify-json/twemoji``, ``-emojione``; CC-BY-4.0), with the English names and tags of Unicode CLDR (npm
  ``emojibase-data``; MIT).
- Game icons (npm ``@iconify-json/game-icons``; CC-BY-3.0, authors at game-icons.net): silhouettes, by their names.
- Fluent flat and high-contrast emoji (npm ``@iconify-json/fluent-emoji-*``; MIT): packs only, never pretraining.

300 emoji *concepts* are kept out of pretraining in every style: whole families (a concept with its gendered and
skin-toned forms) are drawn by the hash of their code point, and clip art that names one of them is dropped.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

NPM = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione-monotone": "@iconify-json/emojione-monotone@1.2.1",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "game-icons": "@iconify-json/game-icons@1.2.4",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "emojibase": "emojibase-data@17.0.0",
}
CLIPART = "openclipart-svg"
HELD_OUT = 300
EMOJI_STYLES = ("noto", "noto-v1", "twemoji", "emojione", "emojione-monotone", "fxemoji")
_COMPONENT_GROUP = 2  # emojibase's group of skin tones and hair styles, which are not pictures by themselves
_GENDER = re.compile(r"^(1F468|1F469|1F9D1|2640|2642|FE0F|200D|1F3F[B-F])$")
_COLLECTION_USES = 12  # a title that more pictures share names their collection
_COLLECTION = re.compile(r"clip ?art by|^(untitled|unnamed|drawing|image|picture|svg|clip ?art|icon|new|test)$", re.I)


@dataclass
class Picture:
    """One picture to render: ``name`` is what it shows, ``tags`` what else may be said of it."""

    key: str
    source: str
    name: str
    tags: list[str]
    svg: str = field(repr=False)
    ink: bool = False  # black on white, which may be drawn in any colour


@dataclass(frozen=True)
class Concept:
    """One emoji without skin tone: ``code`` is its hexadecimal code points without FE0F, ``family`` the code
    without gender, shared by "man running", "woman running" and "person running"."""

    code: str
    family: str
    name: str
    tags: tuple[str, ...]


def fetch(cache_dir: Path) -> None:
    """Download and unpack every source package into ``cache_dir`` (npm and apt-get do the downloading)."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    for name, package in NPM.items():
        fetch_npm(package, cache_dir / name)
    if not (cache_dir / "clipart").exists():
        _run(["apt-get", "download", CLIPART], cache_dir)
        package_file = next(cache_dir.glob(f"{CLIPART}_*.deb"))
        _run(["dpkg", "-x", package_file.name, "clipart.part"], cache_dir)
        (cache_dir / "clipart.part").rename(cache_dir / "clipart")
        package_file.unlink()


def fetch_npm(package: str, target: Path) -> None:
    """Download and unpack an npm package into the folder ``target``, unless that is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    packed = target.parent / _run(["npm", "pack", "--silent", package], target.parent).strip().splitlines()[-1]
    partial = target.with_name(f"{target.name}.part")
    with tarfile.open(packed) as archive:
        archive.extractall(partial, filter="data")
    (partial / "package").rename(target)
    partial.rmdir()
    packed.unlink()


def _run(command: list[str], cwd: Path) -> str:
    try:
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise SystemExit(f"{command[0]} is not installed; it is needed to fetch the source packages") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)} failed:\n{error.stderr}") from error


def concepts(cache_dir: Path) -> list[Concept]:
    """Every emoji of Unicode CLDR without skin tones and components, in code order."""
    found = []
    for row in json.loads((cache_dir / "emojibase/en/data.json").read_text()):
        if row.get("group") in (None, _COMPONENT_GROUP):
            continue
        code = "-".join(part for part in row["hexcode"].split("-") if part != "FE0F")
        rest = [part for part in code.split("-") if not _GENDER.match(part)]
        found.append(Concept(code, "-".join(rest) or code.split("-")[0], row["label"], tuple(row.get("tags", ()))))
    return sorted(found, key=lambda concept: concept.code)


def held_out(cache_dir: Path) -> set[str]:
    """Codes of the concepts no pretraining picture shows: families in hash order until `HELD_OUT` concepts that
    Noto, Twemoji and Fluent all draw are out."""
    drawn = set.intersection(*(set(_icons(cache_dir, style)) for style in ("noto", "twemoji", "fluent-flat")))
    families: dict[str, list[Concept]] = {}
    for concept in concepts(cache_dir):
        families.setdefault(concept.family, []).append(concept)
    chosen: set[str] = set()
    for family in sorted(families, key=digest):
        members = [concept.code for concept in families[family]]
        if len(drawn & (chosen | set(members))) <= HELD_OUT:
            chosen.update(members)
        if len(drawn & chosen) == HELD_OUT:
            return chosen
    raise SystemExit("fewer concepts than asked for")


def phrases(cache_dir: Path, codes: set[str]) -> list[str]:
    """Phrases that the words of a picture must not hold if it is to show none of the concepts ``codes``: their names,
    and for a flag the name of the country alone, since not every flag is called "flag: Malta"."""
    names = [concept.name for concept in concepts(cache_dir) if concept.code in codes]
    return names + [name.partition(": ")[2] for name in names if name.startswith(("flag: ", "keycap: "))]


def nicknames(cache_dir: Path, codes: set[str]) -> set[str]:
    """Other names of the concepts ``codes``: their shortcodes, such as "coffee" of the hot beverage."""
    names: set[str] = set()
    for listing in ("github", "iamcal", "emojibase"):
        rows = json.loads((cache_dir / f"emojibase/en/shortcodes/{listing}.json").read_text(encoding="utf-8"))
        for code, short in rows.items():
            if "-".join(part for part in code.split("-") if part != "FE0F") in codes:
                names |= {words_of(name) for name in ([short] if isinstance(short, str) else short)}
    return names - {""}


def digest(text: str) -> str:
    """A fixed, even order for names: their SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _icons(cache_dir: Path, style: str) -> dict[str, str]:
    """Code -> SVG text of one iconify package."""
    data = json.loads((cache_dir / style / "icons.json").read_text())
    # the others have no code points, but their names are Noto's
    listed = cache_dir / style / "chars.json"
    names = json.loads(listed.read_text()) if listed.is_file() else {}
    names = names or json.loads((cache_dir / "noto/chars.json").read_text())
    found: dict[str, str] = {}
    for code, name in names.items():
        # fxemoji writes a name without hyphens
        icon = data["icons"].get(name) or data["icons"].get(name.replace("-", ""))
        icon = icon or data["icons"].get(data.get("aliases", {}).get(name, {}).get("parent"))
        if icon is not None:
            key = "-".join(part for part in code.upper().split("-") if part != "FE0F")
            found.setdefault(key, svg(icon, data))
    return found


def svg(icon: dict, package: dict) -> str:
    box = f"0 0 {icon.get('width', package.get('width', 16))} {icon.get('height', package.get('height', 16))}"
    body = icon["body"].replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{body}</svg>'
    )


def emoji(cache_dir: Path, style: str, keep: Callable[[Concept], bool] = lambda _: True) -> list[Picture]:
    """The pictures of one emoji style whose concept passes ``keep``."""
    icons = _icons(cache_dir, style)
    return [
        Picture(
            concept.code,
            style,
            concept.name,
            tidy_tags(concept.name, concept.tags),
            icons[concept.code],
            ink=style == "emojione-monotone",
        )
        for concept in concepts(cache_dir)
        if concept.code in icons and keep(concept)
    ]


def game_icons(cache_dir: Path, without: Iterable[str]) -> list[Picture]:
    """Silhouettes with the words of their file names, less those that name a phrase of ``without``."""
    data = json.loads((cache_dir / "game-icons/icons.json").read_text())
    banned = naming(without)
    return [
        Picture(key, "game-icons", name, [], svg(icon, data), ink=True)
        for key, icon in data["icons"].items()
        if len(name := words_of(key)) > 2 and not banned.search(name)
    ]


def naming(phrases: Iterable[str]) -> re.Pattern[str]:
    """Matches text in which one of the phrases stands as whole words."""
    return re.compile(r"\b(" + "|".join(re.escape(words.lower()) for words in phrases) + r")s?\b")


def clipart(cache_dir: Path, without: Iterable[str]) -> list[Picture]:
    """Open Clip Art with usable words, less the generated stars and whatever names a phrase of ``without``."""
    root = cache_dir / "clipart/usr/share/openclipart/svg"
    paths = [path for path in sorted(root.rglob("*.svg")) if "stars" not in path.parts]
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in paths}
    words = {path: _rdf(text) for path, text in texts.items()}
    uses = Counter(title for title, _ in words.values())
    banned = naming(without)
    found = []
    for path in paths:
        relative = path.relative_to(root)
        title, keywords = words[path]
        folders = [words_of(part) for part in relative.parts[:-1] if part not in ("unsorted", "special")]
        name = words_of(title)
        if uses[title] > _COLLECTION_USES or _COLLECTION.search(title) or len(name) < 3:
            name = words_of(path.stem)  # the title names a collection or nothing
        tags = tidy_tags(name, [*(words_of(word) for word in keywords), *folders])
        said = " ".join([name, *tags])
        if not re.search(r"[a-z]{3}", name) or banned.search(said):
            continue
        found.append(Picture(str(relative.with_suffix("")), "clipart", name, tags, texts[path]))
    return found


def _rdf(svg: str) -> tuple[str, list[str]]:
    """Title and keywords of an SVG's RDF block; empty where there is none."""
    block = re.search(r"<(?:\w+:)?Work\b.*?</(?:\w+:)?Work>", svg, re.S)
    if not block:
        return "", []
    # the block alone lacks its namespace declarations: prefixes are dropped before parsing
    bare = re.sub(r"(</?)\w+:", r"\1", re.sub(r"\s[\w:]+=(\"[^\"]*\"|'[^']*')", "", block.group()))
    try:
        work = ElementTree.fromstring(bare)
    except ElementTree.ParseError:
        return "", []
    return work.findtext("title") or "", [item.text or "" for item in work.iterfind("./subject//li")]


def words_of(text: str) -> str:
    """Lower-case words of a title or file name, without authors' serial numbers."""
    text = re.sub(r"[_\-./]+", " ", text.lower())
    text = re.sub(r"\b[a-z]*\d[\w]*\b", " ", text)
    return re.sub(r"[^a-z' ]+", " ", text).strip()[:60].strip()


_NOISE = {"clip art", "clipart", "image", "media", "png", "svg", "public domain", "hash", "unsorted", "special", ""}


def tidy_tags(name: str, tags: Iterable[str]) -> list[str]:
    kept = dict.fromkeys(tag.strip() for tag in tags)
    return [tag for tag in kept if tag not in _NOISE and tag != name and len(tag) > 2][:12]


def render(svg: str, size: int) -> Image.Image | None:
    """A picture drawn on white, cropped to what is drawn and padded to ``size`` x ``size``; None if it cannot be."""
    import resvg_py

    try:
        # dpi: sizes in millimetres are zero without one
        drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, dpi=96.0))))
    except (ValueError, OSError):
        return None
    drawn = drawn.convert("RGBA")
    box = drawn.getchannel("A").getbbox()
    if box is None:
        return None
    drawn = drawn.crop(box)
    inner = round(size * 0.94)
    drawn.thumbnail((inner, inner), Image.Resampling.LANCZOS)
    picture = Image.new("RGBA", (size, size), "white")
    picture.alpha_composite(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    return picture.convert("RGB")


def caption(name: str, tags: Iterable[str], most: int = 5) -> str:
    """``name: tag, tag`` with at most ``most`` tags; which ones is fixed by the name."""
    chosen = sorted(tags, key=lambda tag: digest(name + tag))[:most]
    return f"{name}: {', '.join(chosen)}" if chosen else name

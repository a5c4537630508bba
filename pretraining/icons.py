"""Pictures with words from icon sets: what a name says, and the words of those who drew it.

`icon_sets.json` lists the sets (npm ``@iconify-json/*``), each with its version and licence: MIT, ISC, Apache-2.0, CC0
or CC-BY alone. Sets of brands and of flags are not among them, nor is any of Fluent, whose emoji are the packs. An icon
is named by its file; four sets publish tags as well, and an icon of any set takes the tags of its name. Of the styles
that one set has of an icon (outline, filled, sharp ...) two stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import sources

SETS: dict[str, dict] = json.loads(Path(__file__).with_name("icon_sets.json").read_text(encoding="utf-8"))
# npm package: the file in it that has tags
TAGGED = {
    "mdi": ("@mdi/svg@7.4.47", "meta.json"),
    "tabler": ("@tabler/icons@3.52.0", "icons.json"),
    "lucide": ("lucide-static@1.62.0", "tags.json"),
    "fontawesome": ("@fortawesome/fontawesome-free@7.3.1", "metadata/icon-families.json"),
}
VARIANTS = 2
_FIRST = frozenset(["baseline", "outline", "round", "sharp", "twotone", "ios", "md", "bxs", "bx"])
_LAST = frozenset(
    [
        "outline",
        "outlined",
        "line",
        "linear",
        "fill",
        "filled",
        "solid",
        "bold",
        "light",
        "thin",
        "duotone",
        "twotone",
        "rounded",
        "sharp",
        "round",
        "baseline",
        "broken",
        "remix",
        "flat",
        "24px",
        "small",
        "negative",
        "expressive",
        "active",
        "print",
        "duo",
        "alt",
        "stroke",
        "variant",
        "loop",
        "transition",
        "ltr",
        "rtl",
        "o",
        "f",
        "r",
    ]
)


def fetch(cache_dir: Path) -> None:
    """Download every set, and the four lists of tags, into ``cache_dir``."""
    for name, row in SETS.items():
        sources.fetch_npm(f"@iconify-json/{name}@{row['version']}", cache_dir / "icons" / name)
    for name, (package, member) in TAGGED.items():
        listing = cache_dir / "tags" / f"{name}.json"
        if not listing.exists():
            folder = cache_dir / "tags" / name
            sources.fetch_npm(package, folder)
            (folder / member).rename(listing)


@cache
def tags(cache_dir: Path) -> dict[str, list[str]]:
    """Words of an icon's name in the tagged sets, the sets' words in their order."""
    words: dict[str, dict[str, None]] = {}
    for name, row in _tagged(cache_dir):
        chosen = words.setdefault(sources.words_of(name), {})
        tagged = [sources.words_of(part) for tag in row for part in tag.split("/")]
        chosen.update(dict.fromkeys(said for said in tagged if len(said) > 2))
    return {name: list(said) for name, said in words.items()}


def _tagged(cache_dir: Path) -> Iterator[tuple[str, list[str]]]:
    def listing(name: str) -> dict | list:
        return json.loads((cache_dir / "tags" / f"{name}.json").read_text(encoding="utf-8"))

    yield from listing("lucide").items()
    for name, row in listing("tabler").items():
        yield name, [str(tag) for tag in row["tags"]]
    for name, row in listing("fontawesome").items():
        yield name, [str(term) for term in row["search"]["terms"]]
    for row in listing("mdi"):
        yield row["name"], [*row["aliases"], *row["tags"]]


def base(name: str) -> str:
    """The name of an icon less its style: ``door-open-outline`` and ``sharp-door-open`` are ``door-open``."""
    parts = name.split("-")
    if len(parts) > 1 and parts[0] in _FIRST:
        parts = parts[1:]
    while len(parts) > 1 and (parts[-1] in _LAST or parts[-1].isdigit()):
        parts = parts[:-1]
    return "-".join(parts)


def icons(cache_dir: Path, without: Iterable[str], never: Iterable[str]) -> list[sources.Picture]:
    """The icons of all sets, less those whose words name a phrase of ``without`` and those named ``never``."""
    banned, never, said = sources.naming(without), frozenset(never), tags(cache_dir)
    pictures = []
    for style, row in SETS.items():
        package = json.loads((cache_dir / "icons" / style / "icons.json").read_text(encoding="utf-8"))
        styles: dict[str, list[str]] = {}
        for key, icon in package["icons"].items():
            if not icon.get("hidden"):
                styles.setdefault(base(key), []).append(key)
        for stem, keys in styles.items():
            name = sources.words_of(stem)
            words = said.get(name, [])
            if not re.search("[a-z]{3}", name) or name in never or banned.search(" , ".join([name, *words])):
                continue
            for key in sorted(keys, key=lambda key: (len(key), key))[:VARIANTS]:
                svg = sources.svg(package["icons"][key], package)
                pictures.append(
                    sources.Picture(
                        f"{style}:{key}", style, name, sources.tidy_tags(name, words), svg, ink=not row["colour"]
                    )
                )
    return pictures

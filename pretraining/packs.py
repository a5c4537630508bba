"""Build the embedded picture packs from the npm packages they come from.

    python pretraining/packs.py --out src/aurora_petl/assets/packs        (or: make packs)

A pack is a tar of a plain dataset folder: ``images/*.png``, ``captions.jsonl`` and ``LICENSE``. Test concepts are the
300 that pretraining never sees; 300 more make the validation split; the rest is for training. No concept, nor a
gendered form of it, is in two splits.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import sources

PACKS = {
    "fluent-flat": "Fluent flat emoji",
    "fluent-contrast": "Fluent high-contrast emoji, black on white",
}
SIZE = 112
VALIDATION = 300
LICENSE = """{title}, from the npm package {package}, drawn at {size} px with English names and tags of Unicode CLDR
(npm package {names}, MIT License, Copyright (c) 2017-2019 Miles Johnson).

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def splits(cache: Path) -> dict[str, str]:
    """Code -> split, the same for every pack: families in hash order fill validation, held-out ones are the test."""
    unseen = sources.held_out(cache)
    drawn = {picture.key for style in PACKS for picture in sources.emoji(cache, style)}
    families: dict[str, list[str]] = {}
    for concept in sources.concepts(cache):
        if concept.code in drawn and concept.code not in unseen:
            families.setdefault(concept.family, []).append(concept.code)
    chosen = dict.fromkeys(drawn & unseen, "test")
    left = VALIDATION
    for family in sorted(families, key=lambda name: sources.digest("validation" + name)):
        split = "validation" if len(families[family]) <= left else "train"
        left -= len(families[family]) if split == "validation" else 0
        chosen |= dict.fromkeys(families[family], split)
    return chosen


def build(style: str, cache: Path, out: Path) -> dict[str, int]:
    """Write ``out/style.tar``; returns how many pictures each split holds."""
    chosen = splits(cache)
    files: dict[str, bytes] = {}
    rows, counts = [], dict.fromkeys(("train", "validation", "test"), 0)
    for picture in sources.emoji(cache, style):
        drawn = sources.render(picture.svg, SIZE)
        if drawn is None:
            continue
        buffer = io.BytesIO()
        drawn.quantize(64).save(buffer, "PNG", optimize=True)
        name = f"images/{picture.key.lower()}.png"
        files[name] = buffer.getvalue()
        split = chosen[picture.key]
        counts[split] += 1
        rows.append({"image": name, "caption": sources.caption(picture.name, picture.tags), "split": split})
    files["captions.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    files["LICENSE"] = LICENSE.format(
        title=PACKS[style], package=sources.NPM[style], size=SIZE, names=sources.NPM["emojibase"]
    ).encode()
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{style}.tar.part"
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)  # no dates or owners: the same packages give the same bytes
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    partial.replace(out / f"{style}.tar")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/aurora_petl/assets/packs"))
    parser.add_argument("--cache", type=Path, default=Path("build/pretraining"), help="where packages are kept")
    options = parser.parse_args()
    sources.fetch(options.cache)
    for style in PACKS:
        counts = build(style, options.cache, options.out)
        size = (options.out / f"{style}.tar").stat().st_size
        print(f"{style}: {counts}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

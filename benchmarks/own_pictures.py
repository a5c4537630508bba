"""What ``aurora train --data FOLDER``, with nothing else, does for folders of 60, 200 and 500 captioned pictures.

    python benchmarks/own_pictures.py                 all cells; finished ones in the output folder are not run again
    python benchmarks/own_pictures.py --minutes 20    those that fit, then the table of what there is

Pictures are three kinds: the two embedded packs, and clip art that ``blip-mini``'s pretraining left out because its
words name a concept of the packs' test split (fetched and drawn by ``pretraining/sources.py``: npm, apt-get and
resvg-py; left out without them; too few for 500). A folder is drawn anew for every seed, without splits. The defaults
were developed on one half of each pack, by the hash of a picture's name; folders here are drawn from the other half
alone. Nothing was developed on the clip art.

Both models are scored on the test split that the run made, each by the order of candidates that the validation split
likes best for it. "Gain" is the difference of mean recall; where the run kept the untuned model, it is 0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from aurora_petl.data import load_dataset
from aurora_petl.files import write_json, write_text
from aurora_petl.report import markdown_table

KINDS = ("fluent-contrast", "fluent-flat", "clipart")
SIZES = (60, 200, 500)
SEEDS = (0, 1, 2)
FIGURES = (  # of a run's metrics, that are kept
    *("zero_shot_test", "test", "test_rows", "chosen", "strength", "strengths"),
    *("best_step", "steps", "train_seconds", "validation_best"),
)


def is_for_development(name: str) -> bool:
    """Whether a pack's picture belongs to the half that the defaults were developed on."""
    return int(hashlib.sha256(f"dev{name}".encode()).hexdigest(), 16) % 2 == 0


def pictures(kind: str, cache: Path) -> list[tuple[str, str, bytes]]:
    """File name, caption and encoded picture of all that folders of a kind are drawn from, by name."""
    if kind == "clipart":
        return _clipart(cache)
    pack = load_dataset(kind)
    rows = [(item.image, item.captions[0], pack.read(row)) for row, item in enumerate(pack)]
    return sorted(row for row in rows if not is_for_development(row[0]))


def _clipart(cache: Path) -> list[tuple[str, str, bytes]]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "pretraining"))
    import sources

    sources.fetch(cache)
    out = sources.held_out(cache)
    names = [concept.name for concept in sources.concepts(cache) if concept.code in out]
    shown = {picture.key for picture in sources.clipart(cache, names)}
    rows: list[tuple[str, str, bytes]] = []
    for picture in sources.clipart(cache, ["\0"]):  # none is named so
        if picture.key in shown or (drawn := sources.render(picture.svg, 224)) is None:
            continue
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG")
        rows.append((f"{len(rows)}.png", sources.caption(picture.name, picture.tags), buffer.getvalue()))
    return rows


def make_folder(path: Path, kind: str, size: int, seed: int, cache: Path) -> bool:
    """Draw a folder of ``size`` captioned pictures without splits; whether there are as many."""
    rows = pictures(kind, cache)
    if len(rows) < size:
        return False
    shutil.rmtree(path, ignore_errors=True)
    lines = []
    for name, caption, encoded in random.Random(seed).sample(rows, size):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encoded)
        lines.append(json.dumps({"image": name, "caption": caption}, ensure_ascii=False) + "\n")
    write_text(path / "captions.jsonl", "".join(lines))
    return True


def run(kind: str, size: int, seed: int, out: Path, cache: Path) -> dict | None:
    """Train in a process of its own, or read an earlier call's result; None where there are too few pictures."""
    folder, done = out / f"{kind}-{size}-{seed}", out / f"{kind}-{size}-{seed}.json"
    if done.is_file():
        return json.loads(done.read_text())
    data = out / "pictures" / folder.name
    if not make_folder(data, kind, size, seed, cache):
        return None
    shutil.rmtree(folder, ignore_errors=True)
    words = [sys.executable, "-m", "aurora_petl.cli", "train", "--data", str(data), "--out", str(folder), "--quiet"]
    started = time.perf_counter()
    finished = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if finished.returncode:
        raise SystemExit(f"{folder.name}:\n{finished.stderr}")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics = {name: metrics[name] for name in FIGURES if name in metrics}
    result = {"kind": kind, "pictures": size, "seed": seed, "seconds": seconds, "load": os.getloadavg()[0]}
    result |= {"threads": os.environ.get("OMP_NUM_THREADS", "all"), "cores": os.cpu_count(), "metrics": metrics}
    write_json(done, result)
    shutil.rmtree(data)
    return result


def gain(result: dict) -> float:
    """Points of mean recall on the test split, tuned minus untuned."""
    return result["metrics"]["test"]["mean_recall"] - result["metrics"]["zero_shot_test"]["mean_recall"]


def in_table(results: list[dict]) -> str:
    """A row a kind and size, seeds side by side."""
    rows = []
    for kind in KINDS:
        for size in SIZES:
            cells = [r for r in results if (r["kind"], r["pictures"]) == (kind, size)]
            if cells:
                columns = [
                    [f"{cell['metrics']['zero_shot_test']['mean_recall']:.1f}" for cell in cells],
                    [f"{cell['metrics']['test']['mean_recall']:.1f}" for cell in cells],
                    [f"{gain(cell):+.1f}" for cell in cells],
                    [str(cell["metrics"]["best_step"]) for cell in cells],
                    [f"{cell['seconds']:.0f}" for cell in cells],
                ]
                seeds = ", ".join(str(cell["seed"]) for cell in cells)
                rows.append([kind, str(size), seeds, *(" / ".join(column) for column in columns)])
    return markdown_table(["kind", "pictures", "seeds", "untuned", "tuned", "gain", "step kept", "seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own-pictures"))
    parser.add_argument("--cache", type=Path, default=Path("build/pretraining"), help="of the clip art's sources")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    started, results = time.monotonic(), []
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for size in SIZES:
            for kind in options.kinds:
                late = time.monotonic() - started > 60 * options.minutes
                if late and not (options.out / f"{kind}-{size}-{seed}.json").is_file():
                    continue
                result = run(kind, size, seed, options.out, options.cache)
                if result is not None:
                    results.append(result)
                    print(kind, size, seed, f"gain {gain(result):+.1f}, {result['seconds']:.0f} s", flush=True)
    if results:
        options.results.mkdir(parents=True, exist_ok=True)
        table = in_table(results)
        write_json(options.results / f"own-pictures-{date.today()}.json", results)
        write_text(options.results / f"own-pictures-{date.today()}.md", table + "\n")
        print(table)


if __name__ == "__main__":
    main()

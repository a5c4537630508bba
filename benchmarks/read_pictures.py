"""Pictures a second that are read, decoded and made into the view of evaluation, of a folder of large JPEGs.

    OMP_NUM_THREADS=1 python benchmarks/read_pictures.py --json read-pictures.json

"whole" decodes all pixels, as was done before JPEGs were decoded scaled; "scaled" is what is done now, in this process
and with workers (`data/loading.py`). The ways take turns over the same pictures, which are synthetic.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aurora_petl.data import loading
from aurora_petl.data.media import EvalTransform, PictureFormat, load_image
from aurora_petl.files import write_json


@dataclass(frozen=True)
class Read:
    """Reads a file as a view."""

    view: EvalTransform
    least: int

    def __call__(self, path: Path) -> Tensor:
        return self.view(load_image(path, least=self.least))


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Coarse and fine structure, so that a JPEG of it is about as large as a photograph's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    fine = Image.fromarray(rng.integers(96, 160, (height // 4, width // 4, 3), dtype=np.uint8)).resize((width, height))
    return Image.blend(coarse, fine, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(pictures=200, width=4000, height=3000, size=384, workers=2, repeats=3).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} if not given")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    view = EvalTransform(PictureFormat(options.size))
    ways = {
        "whole": (Read(view, 0), 0),
        "scaled": (Read(view, view.least), 0),
        f"whole, {options.workers} workers": (Read(view, 0), options.workers),
        f"scaled, {options.workers} workers": (Read(view, view.least), options.workers),
    }
    with tempfile.TemporaryDirectory() as folder:
        first = [Path(folder) / f"{number}.jpg" for number in range(min(8, options.pictures))]
        for number, path in enumerate(first):
            photo(options.width, options.height, number).save(path, quality=88)
        paths = [first[number % len(first)] for number in range(options.pictures)]
        mib = sum(path.stat().st_size for path in first) / len(first) / 2**20
        whole, scaled = (Read(view, least)(first[0]) for least in (0, view.least))
        levels = (whole - scaled).abs() * torch.tensor(view.picture.deviation)[:, None, None] * 255
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, (read, workers) in ways.items():
                begun = time.perf_counter()
                with loading.using(workers):
                    count = sum(1 for _ in loading.made_ahead(read, paths))
                taken[name].append((time.perf_counter() - begun) / count)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{options.pictures} JPEGs of {options.width} x {options.height}, {mib:.1f} MiB each, {cores} cores")
    rows = {}
    for name, seconds in taken.items():
        ratios = [before / now for before, now in zip(taken["whole"], seconds, strict=True)]
        rows[name] = {"pictures_per_second": 1 / median(seconds), "ratio": median(ratios), "all_seconds": seconds}
        print(f"{name:20} {1 / median(seconds):7.1f} pictures/s, {median(ratios):5.2f} times")
    difference = {"mean": float(levels.mean()), "largest": float(levels.max())}
    print(f"levels of a pixel (0 to 255) by which the views differ: {difference}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        write_json(options.json, {**settings, "cores": cores, "mib": mib, "difference": difference, **rows})


if __name__ == "__main__":
    main()

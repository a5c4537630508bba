"""What loading costs: decoding and the training view, of a picture at 384 px and of an 8-frame clip at 224 px, on one
core, in CPU time, so that a busy machine does not count. The picture is a 500x375 JPEG as in Flickr30K, the clip 15 s
of 320x240 at 30 frames a second, as in MSR-VTT.

    OMP_NUM_THREADS=1 python benchmarks/augment.py --json augment.json
"""

from __future__ import annotations

import argparse
import io
import random
import time
from fractions import Fraction
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image

from aurora_petl.data.media import EvalTransform, PictureFormat, TrainTransform, load_image
from aurora_petl.data.video import load_frames
from aurora_petl.files import write_json

WORKERS = 2


def scene(width: int, height: int, grain: float, shift: int = 0) -> Image.Image:
    """Smooth shapes and fine grain, about as hard to code as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    picture = np.roll(picture, shift, axis=1) + rng.normal(0, grain, (height, width, 1)).astype(np.int16)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def jpeg() -> bytes:
    buffer = io.BytesIO()
    scene(500, 375, 6).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def clip(seconds: int = 15, rate: int = 30) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for number in range(seconds * rate):
            frame = av.VideoFrame.from_image(scene(320, 240, 2, number // 3))
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40, help="40 if not given")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)

    picture, video, rng = jpeg(), clip(), random.Random(0)
    decoded, frames = load_image(picture), load_frames(video, 8)
    large, small = TrainTransform(PictureFormat(384)), TrainTransform(PictureFormat(224))

    def seen(frames: list[Image.Image]) -> torch.Tensor:
        """All frames through one view, as training has them."""
        key = rng.random()
        return torch.stack([small(frame, random.Random(key)) for frame in frames])

    steps = {
        "picture: decode": lambda: load_image(picture),
        "picture: training view, 384 px": lambda: large(decoded, rng),
        "picture: evaluation view, 384 px": lambda: EvalTransform(PictureFormat(384))(decoded),
        "picture: decode and training view": lambda: large(load_image(picture), rng),
        "clip: decode 8 frames": lambda: load_frames(video, 8, rng),
        "clip: training view, 8 x 224 px": lambda: seen(frames),
        "clip: decode and training view": lambda: seen(load_frames(video, 8, rng)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    print(f"picture of {len(picture) / 1e3:.0f} kB, clip of {len(video) / 1e3:.0f} kB")
    result = {
        name: {"ms": 1e3 * median(values), "ms_mean": 1e3 * mean(values), "ms_fastest": 1e3 * min(values)}
        for name, values in times.items()
    }
    for name, found in result.items():
        print(f"{name:36} {found['ms']:8.2f} ms   (mean {found['ms_mean']:.2f}, fastest {found['ms_fastest']:.2f})")
    whole = {what: result[f"{what}: decode and training view"]["ms_mean"] for what in ("picture", "clip")}
    estimate = {what: WORKERS * 1e3 / ms for what, ms in whole.items()}  # of the mean: operations differ in cost
    print(f"{WORKERS} workers on {WORKERS} cores: about " + ", ".join(f"{n:.0f} {w}s/s" for w, n in estimate.items()))
    if options.json:
        write_json(options.json, {"ms": result, f"per_second_of_{WORKERS}_workers": estimate})


if __name__ == "__main__":
    main()

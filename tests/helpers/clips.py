"""Small encoded clips whose frames can be told apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image


def encode(
    frames: Sequence[Image.Image],
    kind: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 10,
    key_every: int = 8,
    times: Sequence[int] | None = None,
    **options: str,
) -> bytes:
    """A video of these pictures; ``times`` are when each is shown, in units of 1 / ``rate`` seconds."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.gop_size = "yuv420p", key_every
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "bf": "2", "crf": "12"}
        else:
            stream.bit_rate = 4_000_000
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """``count`` frames, at most 64, each of which `number` recognises: six bars, white or black, spell its number."""
    made = []
    for n in range(count):
        bars = np.array([255 * (n >> bit & 1) for bit in range(6)], dtype=np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(bars, (4, 6)))).convert("RGB")
        made.append(picture.resize(size, Image.Resampling.NEAREST))
    return made


def number(frame: Image.Image) -> int:
    """Which of `numbered` a decoded frame is."""
    values = np.asarray(frame.convert("L").resize((6, 1), Image.Resampling.BOX), dtype=float)[0]
    assert (np.abs(values - 127.5) > 60).all(), values
    return sum(int(value > 127) << bit for bit, value in enumerate(values))

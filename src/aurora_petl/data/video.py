"""Clips: only the frames that are asked for, upright, by the times that the packets carry.

Sampling. A clip is cut into ``count`` spans of equal time. Evaluation takes the frame on show in the middle of each,
training the frame on show at a random instant of each: random, and sorted by itself. Spans count time, not frames, so
a variable frame rate changes nothing, and a clip of fewer frames than spans repeats some.

Packets are read first, which decodes nothing and tells every frame's time; decoding then starts at the last key frame
before a wanted frame and stops with the last wanted one. Needs PyAV (the extra ``video``) but for animated GIF, WebP
and PNG, which Pillow reads.
"""

from __future__ import annotations

import io
import os
import random
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from ..errors import AuroraError, first_line, install
from ..files import read_bytes
from .kinds import FRAME_SUFFIXES
from .media import faults, load_image, opened, upright

_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
_PILLOW = re.compile(rb"GIF8[79]a|RIFF....WEBP|\x89PNG|\xff\xd8\xff", re.DOTALL)  # how such files begin
_ANIMATED = ("GIF", "WEBP", "PNG")  # a photograph's further pictures are no frames
_JPEG = b"\xff\xd8\xff"
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a marker that ends a JPEG's coded pixels


def load_frames(
    source: bytes | str | Path, count: int, rng: random.Random | None = None, name: str | None = None
) -> list[Image.Image]:
    """``count`` frames of a clip in the order of time, as upright RGB pictures of the clip's own size.

    Args:
        source: path or encoded bytes of a video or an animation, or the path of a folder of extracted frames.
        count: how many frames; see the module for which.
        rng: where the chance of training comes from; None takes the middles of equal spans.
        name: what messages call the clip; the path by default.

    Raises:
        AuroraError: if there is no such clip, it has no readable video stream, or it breaks off early.
    """
    name = name or (str(source) if isinstance(source, (str, Path)) else "clip")
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            if path.is_dir():
                if not (names := frames_in(path)):
                    raise AuroraError(f"{name}: a folder without frames; it must hold pictures such as 0001.jpg")
                chosen = sample(range(len(names)), len(names), count, rng)
                return [load_image(path / names[number], f"{name}/{names[number]}") for number in chosen]
            source = read_bytes(path)
        except FileNotFoundError as error:
            raise AuroraError(f"{name}: no such clip") from error
        except OSError as error:
            raise AuroraError(f"{name} cannot be read: {error.strerror or first_line(error)}") from error
    with faults(source, name, _broken):
        animated = _PILLOW.match(source) and not _follow_each_other(source)
        return (_animation if animated else _video)(source, count, rng, name)


def sample(times: Sequence[int], end: int, count: int, rng: random.Random | None = None) -> list[int]:
    """Which frames stand for ``count`` equal spans of time.

    Args:
        times: when each frame is first shown, ascending, in any unit.
        end: when the last one goes, in that unit.
        rng: a random instant of each span instead of its middle.

    Returns:
        ``count`` indices into ``times``, ascending.
    """
    span = (end - times[0]) / count
    instants = [times[0] + span * (number + (0.5 if rng is None else rng.random())) for number in range(count)]
    return [min(bisect_right(times, instant), len(times)) - 1 for instant in instants]


def frame_names(names: Iterable[str]) -> list[str]:
    """The pictures among a folder's file names, sorted, with 2 before 10."""
    kept = [name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")]
    return sorted(kept, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])


def frames_in(folder: Path) -> list[str]:
    """The same of a folder: its files, not the folders and pipes of such names.

    Raises:
        OSError: if it cannot be listed.
    """
    with os.scandir(folder) as entries:
        return frame_names(entry.name for entry in entries if entry.is_file())


def _broken(name: str, why: str) -> AuroraError:
    return AuroraError(f"{name}: the clip is broken ({why}); replace it, or leave broken ones out with broken=skip")


def _follow_each_other(data: bytes) -> bool:
    """Whether JPEG follows JPEG, as in raw MJPEG; pictures that lie behind a photograph, a preview or a map of its
    brightness, are listed in its head (MPF)."""
    place = 2
    while data.startswith(b"\xff", place) and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xD9:
            return data[place + 2 :].lstrip(b"\0").startswith(_JPEG)
        if marker == 0xFF:  # a byte that fills
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without a length
            place += 2
        elif marker == 0xE2 and data.startswith(b"MPF\0", place + 4):
            return False
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
            if marker == 0xDA:
                end = _SCAN_END.search(data, place)
                place = end.start() if end else len(data)
    return False


def _animation(data: bytes, count: int, rng: random.Random | None, name: str) -> list[Image.Image]:
    with opened(data, name) as picture:
        times, end = [], 0
        for number in range(getattr(picture, "n_frames", 1) if picture.format in _ANIMATED else 1):
            picture.seek(number)
            picture.load()
            times.append(end)
            end += max(1, round(picture.info.get("duration", 0) or 100))  # ms; 100 is what browsers make of none
        frames = {}
        for number in sorted(set(chosen := sample(times, end, count, rng))):
            picture.seek(number)
            frames[number] = upright(picture)
    return [frames[number] for number in chosen]


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise AuroraError(f"reading video needs PyAV: {install('video')}") from error
    return av


def _video(data: bytes, count: int, rng: random.Random | None, name: str) -> list[Image.Image]:
    av = _av()
    try:
        # playlists, which name other files and addresses, open none
        options = {"protocol_whitelist": "none"}
        with av.open(io.BytesIO(data), metadata_errors="ignore", options=options) as container:
            stream = _stream(container, name)
            packets, shown = _packets(container, stream, name)
            if not packets:
                raise _broken(name, "its video stream is empty")
            stream.codec_context.thread_count = 1  # loader workers are the parallel part
            _check_size(stream.codec_context, name)
            times: Sequence[int] = sorted({packet.pts for packet in packets if not packet.is_discard})
            if shown is None:
                chosen = sample(range(len(packets)), len(packets), count, rng)
                frames = _by_order(stream.codec_context, packets, chosen, name)
                return [frames[number] for number in chosen]
            chosen = [times[number] for number in sample(times, shown, count, rng)]
            frames = _by_time(stream.codec_context, packets, chosen, name)
            return [frames[time] for time in chosen]
    except av.error.FFmpegError as error:
        raise _broken(name, error.strerror or first_line(error)) from error


def _stream(container: Any, name: str) -> Any:
    """The first stream of moving pictures; sound files hold their cover as a stream of one picture."""
    streams = container.streams.video
    moving = [stream for stream in streams if not stream.disposition & stream.disposition.attached_pic]
    if not moving:
        raise _broken(name, "it has no video stream" + (", only a cover picture" if streams else ""))
    return moving[0]


def _check_size(picture: Any, name: str) -> None:
    """The limit that Pillow sets to pictures, for frames."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and picture.width * picture.height > 2 * limit:
        raise AuroraError(f"{name}: too many pixels ({picture.width} x {picture.height}); scale it down")


def _packets(container: Any, stream: Any, name: str) -> tuple[list[Any], int | None]:
    """The video's packets in the order of decoding, and when its last frame goes, in the stream's time base; None if
    their times cannot be trusted: raw streams have none, and AVI knows the order of decoding only.

    Raises:
        AuroraError: if the file ends before its header says so.
    """
    packets, last = [], 0.0
    for packet in container.demux():
        if not packet.size:
            continue  # the end of a stream
        if packet.is_corrupt:
            raise _broken(name, "it breaks off")
        if packet.stream is stream:
            packets.append(packet)
        if packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if container.duration and packets:  # microseconds
        whole = container.duration / 1e6
        held = last - max(0, container.start_time or 0) / 1e6
        if whole - held > max(0.5, 0.05 * whole):
            raise _broken(name, f"it breaks off after {held:.1f} of {whole:.1f} s")
    if container.format.name == "avi" or any(packet.pts is None for packet in packets):
        return packets, None
    final = max(packets, key=lambda packet: packet.pts)
    step = final.duration or (final.pts - packets[0].pts) // max(1, len(packets) - 1) or 1
    return packets, final.pts + step


def _by_time(context: Any, packets: list[Any], wanted: list[int], name: str) -> dict[int, Image.Image]:
    """The frames of these times; where one does not decode, the next that does."""
    places = {packet.pts: place for place, packet in enumerate(packets)}
    found: dict[int, Image.Image] = {}
    ready: deque[Any] = deque()
    position, last = 0, None
    for time in sorted(set(wanted)):
        # of frames stored after a key frame, some are shown before it and may need what lies before it
        keys = (n for n in range(places[time], -1, -1) if packets[n].is_keyframe and packets[n].pts <= time)
        if (key := next(keys, 0)) > position:
            context.flush_buffers()
            ready.clear()
            position = key
        while not (ready and ready[0].pts >= time) and (ready or position <= len(packets)):
            if ready:
                last = ready.popleft()
                continue
            decoded = context.decode(packets[position] if position < len(packets) else None)
            ready.extend(frame for frame in decoded if frame.pts is not None)
            position += 1
        frame = ready[0] if ready else last
        if frame is None:
            raise _broken(name, "no frame decodes")
        found[time] = _upright(frame)
    return found


def _by_order(context: Any, packets: list[Any], wanted: list[int], name: str) -> dict[int, Image.Image]:
    """The frames of these places in the order of showing, all before them decoded."""
    found: dict[int, Image.Image] = {}
    last, shown = None, 0
    for packet in [*packets, None]:
        for last in context.decode(packet):
            if shown in wanted:
                found[shown] = _upright(last)
            shown += 1
        if shown > wanted[-1]:
            break
    if last is None:
        raise _broken(name, "no frame decodes")
    return {number: found.get(number) or _upright(last) for number in wanted}


def _upright(frame: Any) -> Image.Image:
    turn = _TURNS.get(round(frame.rotation / 90) % 4)  # of the display matrix, counterclockwise
    picture = frame.to_image()
    return picture.transpose(turn) if turn is not None else picture

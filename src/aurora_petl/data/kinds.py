"""Which files count as pictures and as clips, and which formats of pictures are decoded."""

from __future__ import annotations

from importlib.util import find_spec

# Pillow's name of a format, and its suffixes. Pillow decodes all of them itself; the formats that are left out start
# other programs (EPS), need plugins of their own, or are no pictures of the world. Those with the surest heads come
# first, since Pillow asks them in this order.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "DIB": (".dib",),
    "PCX": (".pcx",),
    "TGA": (".tga",),
}
HEIF = ("HEIF",)  # what phones write; Pillow reads it where the package pillow-heif is installed
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# pictures all the same: whoever has some is told, not left without a word
UNDECODED_SUFFIXES = () if find_spec("pillow_heif") else HEIF_SUFFIXES
PICTURE_SUFFIXES = (*(suffix for suffixes in FORMATS.values() for suffix in suffixes), *HEIF_SUFFIXES)
ANIMATION_SUFFIXES = (".gif", ".webp", ".apng", ".avifs")
FRAME_SUFFIXES = tuple(
    suffix for suffix in PICTURE_SUFFIXES if suffix not in (".gif", ".apng", ".avifs")
)  # of a folder
CLIP_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".wmv", ".asf", ".flv", ".ogv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob", ".mjpeg", ".mjpg"),
)


def is_media(name: str) -> bool:
    """Whether a name is that of a picture or clip."""
    return name.lower().endswith((*PICTURE_SUFFIXES, *CLIP_SUFFIXES))

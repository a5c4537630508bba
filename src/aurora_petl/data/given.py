"""Pictures as they are given from Python, where anything may come."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..errors import AuroraError, first_line, short
from .media import load_image, upright


def given_picture(picture: object) -> Image.Image:
    """A picture that was given from Python, a file or a picture of PIL, as RGB and upright.

    Raises:
        AuroraError: if it is neither or cannot be read.
    """
    if isinstance(picture, (str, Path)):
        if "://" in str(picture) and not Path(picture).exists():
            raise AuroraError(f"{short(str(picture))} is an address; save the picture and give its file")
        return load_image(picture)
    if not isinstance(picture, Image.Image):
        raise AuroraError(
            f"a picture is {short(picture)}; give files or pictures of PIL, such as Image.fromarray(array) or "
            "Image.open(io.BytesIO(data))"
        )
    try:
        return upright(picture)
    except MemoryError:
        raise
    except Exception as error:  # whatever PIL ends with where the file is closed, or the mode cannot be converted
        raise AuroraError(
            f"a picture of PIL cannot be read ({first_line(error)}); it may be closed: open it anew, or give its file"
        ) from error

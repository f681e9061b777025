"""The bytes of an image file → RGB, with Pillow. Imported with the first image only.

Foreign bytes: five formats and no others are tried, the size is checked before a pixel is decoded,
and whatever the decoder says against them becomes `Unreadable`. Runs in a thread; Pillow gives the
interpreter back while it decodes.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings

from PIL import Image, WebPImagePlugin

from edged.api.media import Unreadable
from edged.protocol import Media

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 25_000_000  # to be decoded: up to 250 MB for a moment
MOST_JPEG_PIXELS = 50_000_000  # a large JPEG is made smaller on the way, but not all of the way
LARGEST_PIXELS = 2048 * 2048  # that a model gets: no projector takes more
SMALL_SIDE = 512  # of an image whose `detail` is "low"
_LONGEST_BY_SHORTEST = 200  # the projectors' own limit

# What is odd in a stranger's file is no matter for the daemon's log.
warnings.filterwarnings("ignore", module="PIL")
# Pillow's own limit warns through `warnings`, which is no way to refuse a request; see `_open`.
Image.MAX_IMAGE_PIXELS = None
assert WebPImagePlugin  # its import is what makes the format known

_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, *, small: bool = False) -> Media:
    """Return the image as a person sees it: upright, on white where it is transparent.

    An animation is its first frame. Raises Unreadable.
    """
    image = _open(data)
    turn = None
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the image
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    try:
        image.load()
        pixels = _on_white(_resized(_plain(image), small=small))
        if turn is not None:
            pixels = pixels.transpose(turn)
    except Exception as error:
        raise Unreadable(f"is a broken {image.format} image: {error}") from error
    return Media("image", pixels.tobytes(), width=pixels.width, height=pixels.height)


def _open(data: bytes) -> Image.Image:
    """Read the head of the file, and refuse what must not be decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    except Exception as error:
        raise Unreadable(f"is no image that can be read ({', '.join(FORMATS)})") from error
    if width < 1 or height < 1:
        raise Unreadable("is an image without pixels")
    limit = MOST_JPEG_PIXELS if image.format in ("JPEG", "MPO") else MOST_PIXELS
    if width * height > limit:
        raise Unreadable(
            f"is an image of {width} × {height} pixels; "  # noqa: RUF001
            f"at most {limit // 1_000_000} million are decoded"
        )
    if max(width, height) > _LONGEST_BY_SHORTEST * min(width, height):
        raise Unreadable(
            f"is an image of {width} × {height} pixels; "  # noqa: RUF001
            f"no side may be more than {_LONGEST_BY_SHORTEST} times the other"
        )
    side = math.isqrt(LARGEST_PIXELS)
    image.draft("RGB", (side, side))  # a large JPEG is decoded at ½, ¼ or ⅛
    return image


def _plain(image: Image.Image) -> Image.Image:
    """Return it as RGB, or as RGBA where something is transparent."""
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _resized(image: Image.Image, *, small: bool) -> Image.Image:
    width, height = image.size
    scale = math.sqrt(LARGEST_PIXELS / (width * height))
    if small:
        scale = min(scale, SMALL_SIDE / max(width, height))
    if scale >= 1:
        return image
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)

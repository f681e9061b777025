"""Images and sounds as clients send them, and files that are none."""

import base64
import io
import struct
import wave
import zlib
from typing import Any

from PIL import Image


def image(width: int = 40, height: int = 20, *, form: str = "PNG", **more: Any) -> bytes:
    """A left half in red, a right half in blue."""
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    out = io.BytesIO()
    picture.save(out, form, **more)
    return out.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(data: bytes | str, **more: Any) -> dict[str, Any]:
    text = data if isinstance(data, str) else url(data)
    return {"type": "image_url", "image_url": {"url": text, **more}}


def sound(seconds: float = 0.5, *, rate: int = 16000, channels: int = 1, width: int = 2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(range(256)) * (int(seconds * rate) * channels * width // 256))
    return out.getvalue()


def sound_part(data: bytes, form: str = "wav") -> dict[str, Any]:
    audio = {"data": base64.b64encode(data).decode(), "format": form}
    return {"type": "input_audio", "input_audio": audio}


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + _chunk(b"IDAT", zlib.compress(bytes(1000)))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")

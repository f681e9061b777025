"""Images and sounds of a conversation: from what a client sent to what a worker gets.

A dialect puts `picture(…)` and `sound(…)` among the parts of a message; its route then calls
`load`, which fetches, decodes and bounds them. So no worker ever parses a client's bytes. Pillow
does the decoding, in threads, and is imported with the first image: a daemon that serves text does
not pay for it.
"""

from __future__ import annotations

import asyncio
import binascii
import re
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec.structs import replace

from edged import errors
from edged.api.entry import Entry
from edged.plan import ModelPlan
from edged.protocol import Generate, Media, Messages

MOST = 32  # images and sounds of one request
MOST_BYTES = 128 << 20  # of them together, decoded; a frame to the worker holds twice as much
MOST_HELD_BYTES = 512 << 20  # decoded, of all requests that run or wait
_FETCHING_LIMIT_S = 30.0  # all of one request

_DATA = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*)", re.IGNORECASE)
_SHOWN_CHARACTERS = 60
# Two at once: a large image takes a few hundred MiB while it is decoded.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="media")


class Unreadable(ValueError):
    """The bytes are not what they should be; the message is a predicate about them."""


# ── what dialects put into messages ──


def picture(url: str, param: str, *, detail: str = "auto") -> dict[str, Any]:
    """Return the part of a message for the image at a `data:` or `https:` URL.

    `param` is where the URL stands in the request; `detail` "low" makes the image small.
    """
    return {"type": "image", "url": url, "detail": detail, "param": param}


def sound(data: str, form: str, param: str) -> dict[str, Any]:
    """Return the part of a message for base64 of a sound; `param` is where that stands."""
    return {"type": "audio", "data": data, "format": form, "param": param}


def text_file(url: str, name: str | None, param: str) -> str:
    """Return what a model reads of a text file in a `data:` URL.

    Raises UnsupportedParameter for anything that is no text, InvalidRequest for broken text.
    """
    kind, data = _from_data_url(url, param)
    if not kind.startswith("text/"):
        raise errors.UnsupportedParameter(
            f"`{param}`: files are read as text, not as `{_shown(kind)}`; "
            "send a `data:text/plain;base64,…` URL",
            param=param,
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise errors.InvalidRequest(f"`{param}` is not UTF-8 text", param=param) from None
    title = f' name="{name}"' if name else ""
    return f"<file{title}>\n{text}\n</file>"


# ── what routes call ──


async def loaded(entry: Entry, request: Generate, *, times: int = 1) -> Generate:
    """Return the request with the images and sounds of its conversation decoded; see `load`."""
    if not isinstance(request.prompt, Messages):
        return request
    return replace(request, prompt=await load(entry, request.prompt, times=times))


async def load(entry: Entry, prompt: Messages, *, times: int = 1) -> Messages:
    """Return the conversation with its images and sounds decoded; one without any as it is.

    `times`: how often it goes to the worker. Raises InvalidRequest or UnsupportedParameter with
    the `param` of the part that is to blame, QueueFull while others hold too much.
    """
    parts = list(_media_parts(prompt))
    if not parts:
        return prompt
    _check(entry.plan, parts)
    found: list[Media] = []
    n_bytes = 0
    try:
        async with asyncio.timeout(None) as limit:
            for part in parts:
                _check_held()
                data = await _bytes_of(entry, part, limit)
                one = await asyncio.get_running_loop().run_in_executor(
                    _THREADS, _decode, part, data
                )
                _held.append(weakref.ref(one))
                n_bytes += len(one.data) * times
                if n_bytes > MOST_BYTES:
                    many = f", for {times} choices" if times > 1 else ""
                    raise errors.InvalidRequest(
                        f"`{part['param']}`: the images and sounds of this request have more than "
                        f"{MOST_BYTES >> 20} MiB when decoded{many}; send fewer or smaller ones",
                        param=part["param"],
                    )
                found.append(one)
    except TimeoutError:
        raise errors.InvalidRequest(
            f"the images of this request could not be fetched in {_FETCHING_LIMIT_S:.0f} s; "
            "send them as `data:` URLs",
            param="messages",
        ) from None
    return replace(prompt, messages=[_without_source(m) for m in prompt.messages], media=found)


def _media_parts(prompt: Messages) -> Iterator[dict[str, Any]]:
    for message in prompt.messages:
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if part["type"] != "text")


def _without_source(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [part if part["type"] == "text" else {"type": part["type"]} for part in content]
    return message | {"content": parts}


_NEEDS = {
    "image": ("images", "image projector"),
    "audio": ("sounds", "audio projector"),
}


def _check(plan: ModelPlan, parts: list[dict[str, Any]]) -> None:
    """Refuse what the model cannot take, before anything is decoded or loaded."""
    if parts and plan.is_fetching:
        raise errors.ModelLoading(
            f"model {plan.model.name!r} is being fetched, and what it takes is not known before; "
            "try again later",
            retry_after_s=30,
        )
    for part in parts:
        if part["type"] not in plan.media:
            many, what = _NEEDS[part["type"]]
            reads = " and ".join(["text", *(_NEEDS[kind][0] for kind in plan.media)])
            raise errors.UnsupportedParameter(
                f"`{part['param']}`: the model `{plan.model.name}` takes no {many}, it reads "
                f"{reads}; a model takes them whose `mmproj` in models.toml names its {what}",
                param=part["param"],
            )
    if len(parts) > MOST:
        raise errors.InvalidRequest(
            f"{len(parts)} images and sounds in one request; at most {MOST} are taken",
            param=parts[MOST]["param"],
        )


_held: list[weakref.ref[Media]] = []  # what is decoded and not gone yet; the loop's


def _check_held() -> None:
    """Refuse another image while the requests under way hold as many as the daemon may."""
    alive = [(ref, one) for ref in _held if (one := ref()) is not None]
    _held[:] = [ref for ref, _ in alive]
    if sum(len(one.data) for _, one in alive) >= MOST_HELD_BYTES:
        raise errors.QueueFull(
            "the images and sounds of the requests under way fill the memory that there is for "
            "them; try again"
        )


# ── one of them ──


async def _bytes_of(entry: Entry, part: dict[str, Any], limit: asyncio.Timeout) -> bytes | None:
    """Return what must be fetched, None where the request itself has the data."""
    url: str = part.get("url", "data:")
    param: str = part["param"]
    scheme = url[:_SHOWN_CHARACTERS].partition(":")[0].lower()
    if scheme == "data":
        return None
    hosts = entry.box.plan.config.server.media_hosts
    if scheme != "https":
        also = " or an `https:` URL" if hosts else ""
        raise errors.InvalidRequest(
            f"`{param}` must be a `data:` URL with the image in base64{also}, not `{_shown(url)}`",
            param=param,
        )
    if limit.when() is None:
        limit.reschedule(asyncio.get_running_loop().time() + _FETCHING_LIMIT_S)
    from edged.api import fetch  # noqa: PLC0415 - httpx and ssl, for few boxes

    most_bytes = entry.box.plan.config.server.max_body_bytes
    try:
        return await fetch.get(url, hosts=hosts, most_bytes=most_bytes)
    except fetch.NotFetched as error:
        raise errors.InvalidRequest(f"`{param}` {error}", param=param) from None


def _decode(part: dict[str, Any], data: bytes | None) -> Media:
    """Return the decoded image or sound. Runs in a thread."""
    param: str = part["param"]
    try:
        if part["type"] == "audio":
            from edged.api import wave_file  # noqa: PLC0415 - few requests have sounds

            return wave_file.decode(_from_base64(part["data"], param), part["format"])
        from edged.api import image_file  # noqa: PLC0415 - Pillow takes 10 MB

        data = _image_data(part["url"], param) if data is None else data
        return image_file.decode(data, small=part["detail"] == "low")
    except Unreadable as error:
        raise errors.InvalidRequest(f"`{param}` {error}", param=param) from None


def _image_data(url: str, param: str) -> bytes:
    kind, data = _from_data_url(url, param)
    # Which image it is, its bytes tell; many clients say "image/jpeg" to everything.
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise Unreadable(f"must be an image, not `{_shown(kind)}`")
    return data


def _from_data_url(url: str, param: str) -> tuple[str, bytes]:
    """Return type and content of a `data:` URL."""
    head, comma, content = url.partition(",")
    found = _DATA.fullmatch(head)
    if not found or not comma or not found["parameters"].lower().endswith(";base64"):
        raise errors.InvalidRequest(
            f"`{param}` must be a URL like `data:image/png;base64,…`, not `{_shown(url)}`",
            param=param,
        )
    return found["type"].strip().lower(), _from_base64(content, param)


_BLANKS = str.maketrans("", "", " \t\r\n")


def _from_base64(text: str, param: str) -> bytes:
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise errors.InvalidRequest(f"`{param}` is not base64", param=param) from None
    if b"\n" in data or b" " in data or b"\r" in data:
        data = text.translate(_BLANKS).encode()
    try:
        return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)
    except binascii.Error as error:
        reason = str(error).lower()
        raise errors.InvalidRequest(f"`{param}` is not base64: {reason}", param=param) from None


def _shown(text: str) -> str:
    short = text[:_SHOWN_CHARACTERS]
    return short if short == text else short + "…"

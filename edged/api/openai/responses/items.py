"""Items of a conversation: as clients send them, as they are kept, as chat templates read them."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edged import errors
from edged.api import media
from edged.api.openai.envelope import encode
from edged.api.openai.responses.schema import (
    ITEM_TYPES,
    REFUSED_ITEMS,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    InputFile,
    InputImage,
    InputText,
    Item,
    ItemReference,
    Message,
    OutputText,
    Part,
    Reasoning,
    Refusal,
)
from edged.api.openai.tools import arguments_of

_LOOKING = ("user", "tool")  # whose messages may have images and sounds
_SEAL = "edged."  # marks an `encrypted_content` as ours

_PREFIX: dict[type[Item], str] = {
    Message: "msg",
    FunctionCall: "fc",
    FunctionCallOutput: "fco",
    Reasoning: "rs",
}


def new_id(prefix: str) -> str:
    """Return an id that nobody has had: `msg_…`, `fc_…`, `rs_…`, `resp_…`."""
    return f"{prefix}_{secrets.token_hex(24)}"


# ── as clients send them ──


def with_types(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request with `type` in every item of its input; clients may leave two out.

    Raises UnsupportedParameter for items of tools that run elsewhere.
    """
    given = raw.get("input")
    if not isinstance(given, list):
        return dict(raw)
    items = []
    for i, item in enumerate(given):
        if isinstance(item, dict) and item.get("type") is None:
            items.append({**item, "type": "message" if "role" in item else "item_reference"})
            continue
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind not in ITEM_TYPES and kind in REFUSED_ITEMS:
            raise errors.UnsupportedParameter(
                f"`input[{i}].type`: items of type `{kind}` are not supported; "
                "edged runs no tools of its own",
                param=f"input[{i}].type",
            )
        items.append(item)
    return {**raw, "input": items}


def given(wire: str | list[Item] | None) -> list[Item]:
    """Return the items of a request's `input`; a text is what the user says."""
    if wire is None:
        return []
    return [Message(role="user", content=wire)] if isinstance(wire, str) else wire


# ── as they are kept ──


def kept(item: Item) -> Item:
    """Return the item in its full form, as it is listed and stored: with id, status and parts."""
    item_id = getattr(item, "id", None) or new_id(_PREFIX[type(item)])
    filled = {"id": item_id, "status": getattr(item, "status", None) or "completed"}
    if isinstance(item, Message):
        content = item.content
        if isinstance(content, str):
            said = item.role == "assistant"
            content = [OutputText(content, logprobs=[]) if said else InputText(content)]
        return msgspec.structs.replace(item, **filled, content=[_filled(part) for part in content])
    if isinstance(item, FunctionCallOutput) and not isinstance(item.output, str):
        filled["output"] = [_filled(part) for part in item.output]
    return msgspec.structs.replace(item, **filled)


def _filled(part: Part) -> Part:
    if isinstance(part, InputImage) and part.detail is None:
        return msgspec.structs.replace(part, detail="auto")
    if isinstance(part, OutputText) and part.logprobs is None:
        return msgspec.structs.replace(part, logprobs=[])
    return part


def encoded(items: Sequence[Item]) -> bytes:
    """Return kept items as JSON; null fields are left out."""
    return encode([bare(item) for item in items])


def decoded(body: bytes) -> list[Item]:
    """Return items that were encoded here, or the output of a stored response."""
    return _DECODER.decode(body)


def bare(item: Item) -> dict[str, Any]:
    """Return a kept item as plain values; null fields are left out."""
    found: dict[str, Any] = _without_null(msgspec.to_builtins(item))
    for name in ("content", "output"):
        if isinstance(found.get(name), list):
            found[name] = [_without_null(part) for part in found[name]]
    return found


def _without_null(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


_DECODER = msgspec.json.Decoder(list[Item])


def seal(text: str) -> str:
    """Return reasoning as an `encrypted_content`: clients hand it back and need not read it.

    It hides nothing, for `content` says the same; it is for those that return only this field.
    """
    return _SEAL + base64.b64encode(text.encode()).decode()


def _unseal(sealed: str, where: str) -> str:
    text = _base64(sealed.removeprefix(_SEAL)) if sealed.startswith(_SEAL) else None
    if text is None:
        raise errors.InvalidRequest(
            f"`{where}.encrypted_content` was not made by edged and cannot be read; "
            "leave the item out",
            param=f"{where}.encrypted_content",
        )
    return text


def _base64(data: str) -> str | None:
    """Return the text in `data`, None when there is none."""
    try:
        return base64.b64decode(data, validate=True).decode()
    except (ValueError, binascii.Error):
        return None


# ── as chat templates read them ──


class Conversation:
    """Puts items together to messages: what the model thought, said and called in one go is one.

    Raises InvalidRequest and UnsupportedParameter with the path of the item that is at fault.
    """

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning: list[str] = []  # before what it led to
        self._names: dict[str, str] = {}  # of calls, by call id
        if instructions:
            self.messages.append({"role": "system", "content": instructions})

    def extend(self, items: Sequence[Item], at: str = "input") -> None:
        """Go on with these items, which the request has at the path `at`."""
        for i, item in enumerate(items):
            where = f"{at}[{i}]"
            match item:
                case Reasoning():
                    self._reasoning.append(_thought(item, where))
                case Message(role="assistant"):
                    said = _content(item.content, f"{where}.content", "assistant")
                    self.messages.append(self._assistant(said))
                case Message():
                    role = "system" if item.role == "developer" else item.role
                    said = _content(item.content, f"{where}.content", role)
                    self._add({"role": role, "content": said})
                case FunctionCall():
                    self._call(item)
                case FunctionCallOutput():
                    self._returned(item, where)
                case ItemReference():
                    raise AssertionError("references are resolved before")

    def end(self) -> list[dict[str, Any]]:
        """Return all messages; what was only thought so far is one too."""
        self._flush()
        return self.messages

    def _add(self, message: dict[str, Any]) -> None:
        self._flush()
        self.messages.append(message)

    def _flush(self) -> None:
        if self._reasoning:
            self.messages.append(self._assistant(""))

    def _assistant(self, said: str | list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if self._reasoning:
            message["reasoning_content"] = "\n".join(self._reasoning)
            self._reasoning = []
        return message

    def _call(self, item: FunctionCall) -> None:
        last = self.messages[-1] if self.messages else {}
        if self._reasoning or last.get("role") != "assistant":
            last = self._assistant("")
            self.messages.append(last)
        self._names[item.call_id] = item.name
        function = {"name": item.name, "arguments": arguments_of(item.arguments)}
        calls = last.setdefault("tool_calls", [])
        calls.append({"id": item.call_id, "type": "function", "function": function})

    def _returned(self, item: FunctionCallOutput, where: str) -> None:
        if item.call_id not in self._names:
            raise errors.InvalidRequest(
                f"`{where}.call_id`: no earlier function call has the id {item.call_id[:100]!r}; "
                "send its `function_call` item before, or `previous_response_id`",
                param=f"{where}.call_id",
            )
        self._add(
            {
                "role": "tool",
                "content": _content(item.output, f"{where}.output", "tool"),
                "tool_call_id": item.call_id,
                "name": self._names[item.call_id],
            }
        )


def _thought(item: Reasoning, where: str) -> str:
    parts: list[str] = [part.text for part in item.content or ()]
    if not parts and item.encrypted_content is not None:
        parts = [_unseal(item.encrypted_content, where)]
    return "\n".join(parts or [part.text for part in item.summary])


def _content(content: str | Sequence[Part], where: str, role: str) -> str | list[dict[str, Any]]:
    """Return one string, or parts of text and media where there are images or sounds."""
    if isinstance(content, str):
        return content
    parts = [_part(part, f"{where}[{j}]", role) for j, part in enumerate(content)]
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _part(part: Part, where: str, role: str) -> dict[str, Any]:
    match part:
        case InputText() | OutputText():
            return {"type": "text", "text": part.text}
        case Refusal():
            return {"type": "text", "text": part.refusal}
        case _ if role not in _LOOKING:
            kind = part.__struct_config__.tag
            raise errors.UnsupportedParameter(
                f"`{where}`: parts of type `{kind}` belong into a message of the user", param=where
            )
        case InputImage(image_url=str() as url):
            return media.picture(url, f"{where}.image_url", detail=part.detail or "auto")
        case InputAudio(sound):
            return media.sound(sound.data, sound.format, f"{where}.input_audio.data")
        case InputFile(file_data=str() as data):
            text = media.text_file(data, part.filename, f"{where}.file_data")
            return {"type": "text", "text": text}
    name = "image_url" if isinstance(part, InputImage) else "file_data"
    raise errors.UnsupportedParameter(
        f"`{where}`: no files are stored or fetched here; send `{name}` with a `data:` URL",
        param=where,
    )

"""Text to tokens and back, by the model's `tokenizer.json`.

LMDeploy's own tokenizer decodes to text and tells of no bytes, and it reads control tokens out of
whatever a client wrote. `tokenizers` is what it stands on: safe from any thread, and it lets go of
the interpreter while it computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edged.protocol import Detokenize, Detokenized, Tokenize, Tokenized
from edged.worker.engine import BadModelError

_SPACE = "▁"  # SentencePiece's
_BYTE_TOKEN = 6  # characters of "<0x0A>"


class Vocab:
    """The vocabulary of one model's folder. Safe from any thread."""

    def __init__(self, folder: Path, shown: frozenset[str]) -> None:
        """`shown`: control tokens (by their text) that appear in the output nevertheless.

        Raises BadModelError.
        """
        path = folder / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
            self._plain = Tokenizer.from_str(text)
            self._special = Tokenizer.from_str(text)
            said = msgspec.json.decode(text, type=dict[str, Any])
        except FileNotFoundError:
            raise BadModelError(f"{folder} has no tokenizer.json; take one that has") from None
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise BadModelError(f"{path} cannot be read: {error}") from None
        self._plain.encode_special_tokens = True
        self.n_tokens: int = self._special.get_vocab_size(with_added_tokens=True)
        added = self._special.get_added_tokens_decoder()
        self._control = {token: each.content for token, each in added.items() if each.special}
        self._words: dict[int, str] = {token: each.content for token, each in added.items()}
        #: Spellings that mean something to the model and nothing to a reader.
        self.silent = frozenset(self._control.values()) - shown
        self._shown = shown
        self._unit = _unit(said.get("decoder"))
        settings = _read(folder / "tokenizer_config.json")
        self.bos_text, self.eos_text = _word(settings, "bos_token"), _word(settings, "eos_token")
        self.bos = self._special.token_to_id(self.bos_text) if self.bos_text else None
        self.ends = self._ends(folder)
        self._longest = max(map(len, self._special.get_vocab(with_added_tokens=True)), default=1)
        self._spellings: list[bytes | None] = [None] * self.n_tokens

    def _ends(self, folder: Path) -> frozenset[int]:
        """Return the tokens that end an answer, as the model's maker says."""
        found: set[Any] = set()
        for name in ("generation_config.json", "config.json"):
            said = _read(folder / name).get("eos_token_id")
            found |= set(said if isinstance(said, list) else [said])
        if self.eos_text:
            found.add(self._special.token_to_id(self.eos_text))
        return frozenset(token for token in found if isinstance(token, int) and self.has_id(token))

    def has_id(self, token: int) -> bool:
        """Tell whether a number is a token."""
        return 0 <= token < self.n_tokens

    def has(self, text: str) -> bool:
        """Tell whether a text is one control token or added word."""
        return text in self._words.values()

    # ── text to tokens ──

    def fewest(self, characters: int) -> int:
        """Return how many tokens a text of this length has at least."""
        return characters // self._longest

    def tokenize(self, parts: Iterable[tuple[str, bool]], *, wrap: bool) -> list[int]:
        """Return the tokens of a text in parts; True: spell control tokens out of the part.

        `wrap`: add BOS and the like, where the model wants them.
        """
        parts = list(parts)
        if len(parts) == 1:
            return self._encode(*parts[0], wrap=wrap)
        tokens = [token for text, special in parts for token in self._encode(text, special)]
        if wrap:
            around = self._special.encode("", add_special_tokens=True).ids
            is_before = bool(around) and around[0] == self.bos
            tokens = [*around, *tokens] if is_before or not around else [*tokens, *around]
        return tokens

    def _encode(self, text: str, special: bool, *, wrap: bool = False) -> list[int]:
        tokenizer = self._special if special else self._plain
        clean = text.encode("utf-8", "replace").decode()  # lone surrogates
        return list(tokenizer.encode(clean, add_special_tokens=wrap).ids)

    def tokenized(self, request: Tokenize) -> Tokenized:
        """Answer a client that asks for the tokens of a text."""
        tokens = self.tokenize([(request.text, request.parse_special)], wrap=request.add_special)
        return Tokenized(request.id, tokens, [self.spelling(token) for token in tokens])

    # ── tokens to text ──

    def detokenized(self, request: Detokenize) -> Detokenized:
        """Answer a client that asks for the text of tokens, all of this vocabulary."""
        return Detokenized(request.id, self.text(request.tokens))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, control tokens included."""
        return b"".join(map(self.spelling, tokens)).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` adds to the output; empty for most control tokens."""
        control = self._control.get(token)
        return b"" if control is not None and control not in self._shown else self.spelling(token)

    def spelling(self, token: int) -> bytes:
        """Return the bytes of `token`, control tokens included; empty where it has none."""
        if not self.has_id(token):  # the model's matrix may be larger than its vocabulary
            return b""
        known = self._spellings[token]
        if known is None:
            known = self._spellings[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        if token in self._words:
            return self._words[token].encode()
        text: str | None = self._special.id_to_token(token)
        if text is None:
            return b""
        if self._unit == "bytes":
            return b"".join(_BYTES.get(each, each.encode()) for each in text)
        if len(text) == _BYTE_TOKEN and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace(_SPACE, " ").encode()


def _unit(decoder: Any) -> str:
    """Return "bytes" for a byte-level vocabulary, "text" for SentencePiece's; else refuse."""
    kinds = {each.get("type") for each in _flat(decoder)}
    if "ByteLevel" in kinds:
        return "bytes"
    if kinds & {"Metaspace", "ByteFallback"} or not kinds:
        return "text"
    raise BadModelError(
        f"its tokenizer.json decodes by {', '.join(sorted(map(str, kinds)))}, which is not known"
    )


def _flat(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    inner = decoder.get("decoders")
    return [each for one in inner for each in _flat(one)] if inner else [decoder]


def _byte_letters() -> dict[str, bytes]:
    """Return GPT-2's letters for bytes: printable ones stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): bytes([byte]) for byte in plain}
    others = (byte for byte in range(0x100) if byte not in plain)
    return letters | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(others)}


_BYTES = _byte_letters()


def _word(settings: dict[str, Any], key: str) -> str:
    said = settings.get(key)
    return str(said.get("content", "") if isinstance(said, dict) else said or "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return {}


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the folder's chat templates by name ("default", "tool_use" …)."""
    found: dict[str, str] = {}
    said = _read(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(said, list):
        found = {str(each["name"]): str(each["template"]) for each in said}
    elif isinstance(said, str):
        found = {"default": said}
    if isinstance(own := _read(folder / "chat_template.json").get("chat_template"), str):
        found["default"] = own
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return found

"""Vocabularies of real models, byte-level BPE or WordPiece: read from GGUF, cut, written again."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter, TokenType

from tests.models.source import llama_cpp_vocabulary

ROOT = Path(__file__).resolve().parents[2]
EDGE_GUIDE = ROOT / "edged/store/builtin/edge-guide.gguf"
CUT_SIZE = 2048
WORDPIECE_SIZE = 6144

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens of a byte-level BPE; token ``i`` has type ``types[i]`` (``gguf.TokenType``)."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    eos: str
    pad: str
    chat_template: str

    def digest(self) -> str:
        """Return eight hex digits that name the content."""
        text = "\0".join((*self.tokens, *self.merges, self.pre, self.eos, self.chat_template))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def sayable(self) -> np.ndarray:
        """Return one bool per token: an ordinary token whose bytes are whole UTF-8 characters."""
        byte_of = _byte_of_character()

        def whole(token: str) -> bool:
            try:
                bytes(byte_of[character] for character in token).decode()
            except (KeyError, UnicodeDecodeError):
                return False
            return True

        return np.array(
            [
                kind == TokenType.NORMAL and whole(token)
                for token, kind in zip(self.tokens, self.types, strict=True)
            ]
        )

    def write(self, writer: GGUFWriter) -> None:
        """Add the tokenizer's keys to ``writer``."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.tokens.index(self.pad))
        writer.add_eos_token_id(self.tokens.index(self.eos))
        writer.add_pad_token_id(self.tokens.index(self.pad))
        writer.add_add_bos_token(False)
        writer.add_chat_template(self.chat_template)


@dataclasses.dataclass(frozen=True)
class WordPiece:
    """The vocabulary of a BERT; its special tokens have BERT's own numbers."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]

    def digest(self) -> str:
        """Return eight hex digits that name the content."""
        return hashlib.sha256("\0".join(self.tokens).encode()).hexdigest()[:8]

    def sayable(self) -> np.ndarray:
        """Return one bool per token: an ordinary one."""
        return np.array([kind == TokenType.NORMAL for kind in self.types])

    def write(self, writer: GGUFWriter) -> None:
        """Add the tokenizer's keys to ``writer``."""
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("bert-bge")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_pad_token_id(self.tokens.index("[PAD]"))
        writer.add_unk_token_id(self.tokens.index("[UNK]"))
        writer.add_uint32("tokenizer.ggml.cls_token_id", self.tokens.index("[CLS]"))
        writer.add_sep_token_id(self.tokens.index("[SEP]"))
        writer.add_mask_token_id(self.tokens.index("[MASK]"))


@functools.cache
def wordpiece() -> WordPiece:
    """Return the commonest words and all single characters of bge's (BERT's) vocabulary."""
    fields = GGUFReader(llama_cpp_vocabulary("bert-bge")).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    cut = slice(WORDPIECE_SIZE)
    return WordPiece(tuple(tokens[cut]), tuple(int(kind) for kind in types[cut]))


@functools.cache
def qwen2() -> Vocabulary:
    """Return the vocabulary of Qwen2 (151,936 tokens) with a plain ChatML template."""
    return dataclasses.replace(_read(llama_cpp_vocabulary("qwen2")), eos="<|im_end|>")


@functools.cache
def small() -> Vocabulary:
    """Return a small real vocabulary: edge-guide's, or Qwen2's first tokens where it is absent."""
    return _read(EDGE_GUIDE) if EDGE_GUIDE.exists() else _cut(qwen2(), CUT_SIZE)


def _read(path: Path) -> Vocabulary:
    """Read the vocabulary of the GGUF file ``path``."""
    fields = GGUFReader(path).fields

    def value(key: str) -> Any:
        return fields[f"tokenizer.ggml.{key}"].contents()

    tokens: tuple[str, ...] = tuple(value("tokens"))
    template = fields.get("tokenizer.chat_template")
    eos = tokens[value("eos_token_id")]
    pad = fields.get("tokenizer.ggml.padding_token_id")
    return Vocabulary(
        tokens=tokens,
        types=tuple(int(kind) for kind in value("token_type")),
        merges=tuple(value("merges")),
        pre=str(value("pre")),
        eos=eos,
        pad=tokens[pad.contents()] if pad else eos,
        chat_template=template.contents() if template else CHATML,
    )


def _cut(whole: Vocabulary, size: int) -> Vocabulary:
    """Return the first ``size`` tokens, the merges that make them and the control tokens.

    Works where token 256 + i is made by merge i, as in Qwen2's vocabulary.
    """
    merges = whole.merges[: size - 256]
    tokens = whole.tokens[:size]
    assert tokens[256:] == tuple(merge.replace(" ", "") for merge in merges)
    control = tuple(
        token
        for token, kind in zip(whole.tokens, whole.types, strict=True)
        if kind == TokenType.CONTROL
    )
    return dataclasses.replace(
        whole,
        tokens=tokens + control,
        types=whole.types[:size] + (int(TokenType.CONTROL),) * len(control),
        merges=merges,
    )


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's map of printable characters to bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + index): byte for index, byte in enumerate(other)
    }

"""Train edge-guide's byte-level BPE.

The vocabulary is made so that copying a name from the prompt is easy for a very small model:
letters are merged without regard to what stands before them, and a Chinese character is never
merged with its neighbour. So `Paris` has the same pieces in `weather in Paris` and in `"Paris"`.
Only then, with the lowest priority, the commonest first pieces get a form with a leading space.
At run time the pre-tokenizer is Qwen2's own, which llama.cpp knows as "qwen2".
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
N_SPACED = 700  # pieces that also get a leading-space form

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISIBLE = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
SPECIAL = CONTROL + VISIBLE

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As above, but letters never take the character before them, and Han characters stand alone.
TRAINING_SPLIT = (
    r"\p{Han}|[\p{L}&&[^\p{Han}]]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "Ġ"  # the byte-level alphabet's letter for a space


def _pre_tokenizer(split: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(texts: Iterable[str]) -> Tokenizer:
    """Train on plain texts (no special tokens in them) and return the run-time tokenizer."""
    texts = list(texts)
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = _pre_tokenizer(TRAINING_SPLIT)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - N_SPACED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(texts, trainer)
    learned = json.loads(base.to_str())["model"]
    vocab: dict[str, int] = learned["vocab"]
    merges = [tuple(merge) for merge in learned["merges"]]

    for piece in _after_space(base, texts, vocab):
        vocab[SPACE + piece] = len(vocab)
        merges.append((SPACE, piece))

    final = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    final.pre_tokenizer = _pre_tokenizer(QWEN2_SPLIT)
    final.decoder = decoders.ByteLevel()
    final.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    final.add_tokens([AddedToken(text, normalized=False) for text in VISIBLE])
    return final


def _after_space(base: Tokenizer, texts: list[str], vocab: dict[str, int]) -> Iterator[str]:
    """The commonest first pieces of words that follow a space, commonest first."""
    counts: Counter[str] = Counter()
    for encoding in base.encode_batch(texts):
        tokens = encoding.tokens
        for before, piece in itertools.pairwise(tokens):
            if before == SPACE and piece[0].isalpha() and piece.isascii():
                counts[piece] += 1
    new = (piece for piece, _ in counts.most_common() if SPACE + piece not in vocab)
    for _, piece in zip(range(N_SPACED), new, strict=False):
        yield piece

"""Rebuild edge-guide from nothing: tokenizer, training, GGUF, scores.

    python packaging/edge-guide/build.py

Everything is seeded. Two runs on like machines give like models; bit for bit only where torch's
kernels and the number of threads are the same.
"""

import re
import subprocess
import sys
from pathlib import Path

import corpus
import tokenizer
from render import prompt

HERE = Path(__file__).parent
WORK = HERE.parents[1] / "build" / "edge-guide"
TARGET = HERE.parents[1] / "edged" / "store" / "builtin" / "edge-guide.gguf"
TEXTS = 12_000  # conversations that the tokenizer learns from


def train_tokenizer(path: Path) -> None:
    """Learn the vocabulary from the corpus, special tokens cut out."""
    special = "|".join(re.escape(text) for text in tokenizer.SPECIAL)
    stream = corpus.training(seed=7)
    texts = []
    for _ in range(TEXTS):
        example = next(stream)
        texts.append(" ".join(re.split(special, prompt(example) + example.answer)))
    tokenizer.train(texts).save(str(path))


def main() -> None:
    """Run all stages one after the other."""
    WORK.mkdir(parents=True, exist_ok=True)
    vocabulary, trained = WORK / "tokenizer.json", WORK / "edge-guide.gguf"
    train_tokenizer(vocabulary)
    run = [sys.executable, HERE / "train.py", "--tokenizer", vocabulary, "--out", trained]
    subprocess.run(run, check=True)
    TARGET.write_bytes(trained.read_bytes())
    subprocess.run([sys.executable, HERE / "evaluate.py", TARGET], check=True)


if __name__ == "__main__":
    main()

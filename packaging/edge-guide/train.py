"""Train edge-guide on two CPU cores.

The weights start with a circuit for copying (`copying.py`); the first steps are a curriculum of
random token sequences that repeat, with loss on the repeat, which makes it sharp. Then comes the
corpus, with a few such batches in the mix. Length is counted in steps, not in seconds, so that a
run can be repeated; a step is about `TOKENS` tokens.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import copying
import corpus
import export
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from model import Guide, Shape
from render import encode
from tokenizers import Tokenizer

TOKENS = 3072  # per step, padding included
POOL = 400  # conversations that are sorted by length together
LR = 2e-3  # AdamW: embedding, norms, biases
LR_MATRIX = 2e-3  # Muon, scaled to AdamW's step size
COPY_SHARE = (1.0, 0.06)  # of the batches: during the curriculum, and after it

Batch = tuple[torch.Tensor, torch.Tensor]  # ids and labels, (batch, time); label -100 = not learnt


@dataclass(frozen=True)
class Plan:
    """Steps of the curriculum, of the whole, and of the falling learning rate at its end."""

    copy_steps: int
    steps: int
    fall_steps: int


def copy_batch(random: np.random.Generator, vocab: int) -> Batch:
    """Random tokens, in one row the same length, repeated after a gap of other random tokens."""
    n = int(random.integers(6, 40))
    gap = int(random.integers(0, 16))
    # Few tokens to choose from: the pattern shows more often, and one token is not enough to match.
    pool = random.integers(0, vocab, int(random.choice([16, 32, 64, 128, 256, vocab])))
    rows = max(1, TOKENS // (2 * n + gap))
    first = random.choice(pool, (rows, n))
    ids = np.concatenate([first, random.choice(pool, (rows, gap)), first], axis=1)
    labels = np.full_like(ids, -100)
    labels[:, n + gap + 1 :] = ids[:, n + gap + 1 :]
    return torch.from_numpy(ids), torch.from_numpy(labels)


def corpus_batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Endless batches of conversations of like length, so that little padding is computed."""
    random = np.random.default_rng(seed)
    stream = corpus.training(seed)
    while True:
        pool = sorted(
            (encode(tokenizer, next(stream)) for _ in range(POOL)), key=lambda e: len(e[0])
        )
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(item[0]) > TOKENS:
                groups.append([])
            groups[-1].append(item)
        for i in random.permutation(len(groups)):
            yield _pad(groups[i])


def _pad(group: list[tuple[list[int], list[bool]]]) -> Batch:
    t = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), t, dtype=torch.long)
    labels = torch.full((len(group), t), -100, dtype=torch.long)
    for row, (tokens, learn) in enumerate(group):
        line = torch.tensor(tokens)
        ids[row, : len(tokens)] = line
        labels[row, : len(tokens)] = torch.where(torch.tensor(learn), line, -100)
    return ids, labels


def loss_of(model: Guide, batch: Batch) -> torch.Tensor:
    """Mean cross entropy over learnt tokens; the head runs on those positions only."""
    ids, labels = batch
    target = labels[:, 1:]
    wanted = target != -100
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids[:, :-1])[wanted]
        logits = model.logits(hidden)
    return F.cross_entropy(logits.float(), target[wanted])


def optimizers(model: Guide) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "blocks" in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "blocks" not in n]
    return [
        torch.optim.Muon(
            matrices, lr=LR_MATRIX, weight_decay=0.02, adjust_lr_fn="match_rms_adamw", ns_steps=4
        ),
        torch.optim.AdamW(rest, lr=LR, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def schedule(step: int, plan: Plan) -> float:
    """Learning-rate factor: short warm-up, level, then a linear fall over the last steps."""
    left = (plan.steps - step) / plan.fall_steps
    return min(1.0, (step + 1) / 50, max(left, 0.0) + 0.01)


def train(out: Path, tokenizer: Tokenizer, plan: Plan, every: int) -> None:
    """Train and write `out` (a GGUF) every `every` steps and at the end, with its float weights beside it."""
    torch.manual_seed(0)
    shape = Shape(vocab=tokenizer.get_vocab_size())
    model = Guide(shape)
    copying.prepare(model)
    steppers = optimizers(model)
    rates = [group["lr"] for opt in steppers for group in opt.param_groups]
    random = np.random.default_rng(1)
    batches = corpus_batches(tokenizer, seed=2)
    started = time.monotonic()
    mean = {"copy": 0.0, "text": 0.0}
    for step in range(plan.steps):
        copies = random.random() < COPY_SHARE[step >= plan.copy_steps]
        batch = copy_batch(random, shape.vocab) if copies else next(batches)
        factor = schedule(step, plan)
        for group, rate in zip(
            (g for opt in steppers for g in opt.param_groups), rates, strict=True
        ):
            group["lr"] = rate * factor
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in steppers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        name = "copy" if copies else "text"
        value = loss.item()
        mean[name] = 0.97 * mean[name] + 0.03 * value if mean[name] else value
        if step % 50 == 49:
            print(
                f"step {step + 1}/{plan.steps} {time.monotonic() - started:.0f} s"
                f" copy {mean['copy']:.3f} text {mean['text']:.3f}",
                flush=True,
            )
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            export.write(out, shape, dict(model.named_parameters()), tokenizer)
            torch.save(model.state_dict(), out.with_suffix(".pt"))


def main() -> None:
    """Command line: train.py --tokenizer FILE --out FILE [--steps N …]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--copy-steps", type=int, default=150)
    parser.add_argument("--fall-steps", type=int, default=700)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    train(args.out, tokenizer, Plan(args.copy_steps, args.steps, args.fall_steps), args.every)


if __name__ == "__main__":
    main()

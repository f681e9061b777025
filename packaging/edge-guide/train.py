"""Train edge-guide on two CPU cores.

The weights start with a circuit for copying (`copying.py`); the first steps are a curriculum of
random token sequences that repeat, with loss on the repeat, which makes it sharp. Then comes the
corpus, with a few such batches in the mix. Length is counted in steps, not in seconds, so that a
run can be repeated; a step is about `TOKENS` tokens. A run is made of stages, so that a long one
can be interrupted between them: each starts from the weights of the one before.

One thread: on a core to itself it is as fast as two that wait for each other on a shared machine.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import copying
import corpus
import export
import growing
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
COPY_SHARE = (1.0, 0.1)  # of the batches: during the curriculum, and after it

Batch = tuple[torch.Tensor, torch.Tensor]  # ids and labels, (batch, time); label -100 = not learnt


@dataclass(frozen=True)
class Stage:
    """Steps of the curriculum, of the whole, and of the falling learning rate at its end."""

    steps: int
    copy_steps: int = 0
    fall_steps: int = 0
    singles: float = 0.0  # see `corpus.one`: calls are long, and crowd single questions out
    layers: int = 6
    rate: float = 1.0  # of the learning rate: a high one first undoes what a fall has settled
    kept: float = 0.0  # share of the weights before it in the mean that it leaves


STAGES = (
    Stage(steps=2000, copy_steps=150),
    Stage(steps=5000, fall_steps=2200),
    Stage(steps=2500, fall_steps=1800, singles=0.5),
    Stage(steps=2400, fall_steps=2400, singles=0.15, layers=8, rate=0.4),
    Stage(steps=900, fall_steps=900, singles=0.45, layers=8, rate=0.15, kept=0.5),
    Stage(steps=2600, fall_steps=2600, singles=0.3, layers=8, rate=0.4, kept=0.25),
    Stage(steps=700, fall_steps=700, layers=8, rate=0.15),
)


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


def corpus_batches(tokenizer: Tokenizer, seed: int, singles: float) -> Iterator[Batch]:
    """Endless batches of conversations of like length, so that little padding is computed."""
    random = np.random.default_rng(seed)
    stream = corpus.training(seed, singles)
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


def schedule(step: int, stage: Stage) -> float:
    """Learning-rate factor: short warm-up, level, then a linear fall over the last steps."""
    left = (stage.steps - step) / stage.fall_steps if stage.fall_steps else 1.0
    return stage.rate * min(1.0, (step + 1) / 50, max(left, 0.0) + 0.01)


def train(out: Path, tokenizer: Tokenizer, number: int, every: int) -> None:
    """Run stage `number`, writing `out` (a GGUF) every `every` steps and at the end.

    The float weights lie beside it; stages after the first start from them.
    """
    stage = STAGES[number]
    torch.manual_seed(0)
    shape = Shape(vocab=tokenizer.get_vocab_size(), layers=stage.layers)
    model = Guide(shape)
    if number == 0:
        copying.prepare(model)
    else:
        growing.load(model, out)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steppers = optimizers(model)
    rates = [group["lr"] for opt in steppers for group in opt.param_groups]
    random = np.random.default_rng(10 * number + 1)
    batches = corpus_batches(tokenizer, 10 * number + 2, stage.singles)
    started = time.monotonic()
    mean = {"copy": 0.0, "text": 0.0}
    for step in range(stage.steps):
        copies = random.random() < COPY_SHARE[step >= stage.copy_steps]
        batch = copy_batch(random, shape.vocab) if copies else next(batches)
        factor = schedule(step, stage)
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
                f"stage {number + 1} step {step + 1}/{stage.steps} {time.monotonic() - started:.0f} s"
                f" copy {mean['copy']:.3f} text {mean['text']:.3f}",
                flush=True,
            )
        if (step + 1) % every == 0 or step + 1 == stage.steps:
            export.write(out, shape, dict(model.named_parameters()), tokenizer)
            torch.save(model.state_dict(), out.with_suffix(".pt"))
    if stage.kept:
        mean = _mean(before, model.state_dict(), stage.kept)
        export.write(out, shape, mean, tokenizer)
        torch.save(mean, out.with_suffix(".pt"))


def _mean(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], kept: float
) -> dict[str, torch.Tensor]:
    """Weights between those of two stages: better than either of them."""
    return {name: kept * before[name] + (1 - kept) * value for name, value in after.items()}


def main() -> None:
    """Command line: train.py --tokenizer FILE --out FILE [--from-stage N]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--from-stage", type=int, default=1, help="go on from the weights there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    for number in range(args.from_stage - 1, len(STAGES)):
        train(args.out, tokenizer, number, args.every)


if __name__ == "__main__":
    main()

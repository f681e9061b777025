"""A program for LMDeploy's interpreter: transformers on a folder of safetensors, in float32.

Reads a JSON object from stdin: `folder`, `conversations` (messages of each) and `answers` (tokens
that someone else chose for each, greedily). Writes for each conversation the tokens of its prompt,
as edged's preparer for LMDeploy makes them, and of each place of the answer the token that
transformers would choose there and by how many logits it is ahead of the one in `answers`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edged.protocol import Generate, LmdeployLaunch, Messages
from edged.worker.lmdeploy.prepare import Preparer

_CONTEXT = 1024


def main() -> None:
    """Answer one object."""
    asked: dict[str, Any] = json.load(sys.stdin)
    folder = Path(asked["folder"])
    preparer = Preparer(folder, _CONTEXT, LmdeployLaunch("", (0,), 0, 0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    told = []
    for messages, answer in zip(asked["conversations"], asked["answers"], strict=True):
        prompt = list(preparer.prepare(Generate(Messages(messages))).tokens)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.argmax(-1)
        lead = logits.max(-1).values - logits[torch.arange(len(answer)), torch.tensor(answer)]
        told.append({"prompt": prompt, "chosen": chosen.tolist(), "leads": lead.tolist()})
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()

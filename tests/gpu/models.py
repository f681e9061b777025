"""Models of random weights for a GPU: run by LMDeploy's interpreter, `python FILE FOLDER [awq]`."""

import json
import random
import struct
import sys
from pathlib import Path
from typing import Any

_GROUP = 128
_PER_WORD = 8  # 4-bit numbers


def to_awq(folder: Path) -> None:
    """Turn the folder's linear layers into AWQ's form, with random numbers in it."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    body, chance = raw[8 + length :], random.Random(11)
    made: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()

    def add(name: str, kind: str, shape: list[int], content: bytes) -> None:
        begin = len(data)
        data.extend(content)
        made[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, len(data)]}

    for name, tensor in header.items():
        if not name.endswith("_proj.weight"):
            begin, end = tensor["data_offsets"]
            add(name, tensor["dtype"], tensor["shape"], body[begin:end])
            continue
        out, inner = tensor["shape"]
        stem, groups = name.removesuffix("weight"), inner // _GROUP
        words = [inner, out // _PER_WORD]
        add(f"{stem}qweight", "I32", words, chance.randbytes(4 * words[0] * words[1]))
        zeros = bytes([0x88]) * (4 * groups * out // _PER_WORD)
        add(f"{stem}qzeros", "I32", [groups, out // _PER_WORD], zeros)
        scales = struct.pack(f"<{groups * out}e", *[0.01] * (groups * out))
        add(f"{stem}scales", "F16", [groups, out], scales)
    text = json.dumps(made).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": _GROUP, "version": "gemm",
        "zero_point": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    from edged.worker.lmdeploy import random_model

    random_model.write(Path(sys.argv[1]))
    if sys.argv[2:] == ["awq"]:
        to_awq(Path(sys.argv[1]))

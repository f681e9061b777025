"""edge-guide with its weights as float32: a trained model whose rounding hides nothing.

In its own Q8_0 every activation is rounded to eight bits, so that a difference in the last bit (the
order of a sum) grows to tenths of a logit.
"""

import hashlib
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

from tests.models.cache import UnavailableError, build_once
from tests.models.vocabulary import EDGE_GUIDE

_WRITTEN_ANYWAY = ("GGUF.", "general.architecture", "general.file_type")


def float_guide() -> Path:
    """Return the GGUF file, about four times as large as edge-guide's."""
    if not EDGE_GUIDE.exists():
        raise UnavailableError("edge-guide is not built: make edge-guide")
    digest = hashlib.sha256(EDGE_GUIDE.read_bytes()).hexdigest()[:8]
    return build_once(f"edge-guide-f32.v1-{digest}.gguf", _write)


def _write(path: Path) -> None:
    reader = GGUFReader(EDGE_GUIDE)
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith(_WRITTEN_ANYWAY):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=element)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        writer.add_tensor(tensor.name, values.astype(np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

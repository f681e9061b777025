import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import GgufError
from edged.store.gguf import GgufHeader, read_header
from tests.models import TRAITS, UnavailableError, broken, llama_cpp_source, tiny
from tests.unit.gguf_bytes import ARRAY, MODEL, STRING, TENSORS, U32, U64, gguf, string


def read(tmp_path: Path, content: bytes) -> GgufHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_header(path)


def refusal(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(GgufError) as caught:
        read(tmp_path, content)
    return caught.value.message


def built(build: Any, *args: Any) -> Path:
    try:
        return Path(build(*args))
    except UnavailableError as error:
        pytest.skip(str(error))


# ── what is read ──


def test_header_says_what_the_plan_needs(tmp_path: Path) -> None:
    header = read(tmp_path, gguf())
    assert header.architecture == "llama"
    assert header.name == "Test"
    assert header.context_length == 4096
    assert header.n_vocab == 4
    assert header.chat_template
    assert header.kind == "chat"
    assert header.sliding_window is None
    assert header.attention_layers == {0, 1}
    assert header.weights_bytes == 4 * (64 * 4 + 2 * 64 * 32)
    assert header.bytes_by_type == {"F32": header.weights_bytes}


@pytest.mark.parametrize("version", [2, 3])
def test_versions_that_exist_are_read(tmp_path: Path, version: int) -> None:
    assert read(tmp_path, gguf(version=version)).version == version


def test_per_layer_figures_come_for_each_layer(tmp_path: Path) -> None:
    one = read(tmp_path, gguf())
    assert one.per_layer("attention.head_count_kv", 0) == (2, 2)
    assert one.per_layer("absent", 7) == (7, 7)
    many = read(tmp_path, gguf({**MODEL, "llama.attention.head_count_kv": [4, 0, 9]}))
    assert many.per_layer("attention.head_count_kv", 0) == (4, 0)
    short = read(tmp_path, gguf({**MODEL, "llama.attention.head_count_kv": [4]}))
    assert short.per_layer("attention.head_count_kv", 1) == (4, 1)


def test_quantised_tensors_count_their_blocks(tmp_path: Path) -> None:
    q4_k = ("blk.0.ffn_up.weight", (256, 10), 12)
    header = read(tmp_path, gguf(tensors=[*TENSORS, q4_k]))
    assert header.bytes_by_type["Q4_K"] == 10 * 144


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({}, "chat"),
        ({"llama.pooling_type": 0}, "chat"),
        ({"llama.pooling_type": 3}, "embeddings"),
        ({"llama.pooling_type": 4}, "rerank"),
        ({"general.architecture": "bert"}, "embeddings"),
        ({"llama.pooling_type": 9}, "chat"),
        ({"llama.pooling_type": "mean"}, "chat"),
    ],
)
def test_kind_follows_pooling_and_architecture(
    tmp_path: Path, extra: dict[str, Any], kind: str
) -> None:
    assert read(tmp_path, gguf({**MODEL, **extra})).kind == kind


def test_pooling_causality_and_classifier_are_read(tmp_path: Path) -> None:
    plain = read(tmp_path, gguf())
    assert (plain.pooling, plain.is_encoder, plain.is_causal) == (None, False, True)
    assert not plain.classifier
    both_ways = read(tmp_path, gguf({**MODEL, "llama.attention.causal": False}))
    assert not both_ways.is_causal
    bert = {**MODEL, "general.architecture": "bert", "bert.pooling_type": 2}
    head = ("cls.output.weight", (64, 1), 0)
    encoder = read(tmp_path, gguf(bert, [*TENSORS, head]))
    assert (encoder.pooling, encoder.is_encoder, encoder.is_causal) == ("cls", True, False)
    assert encoder.classifier


@pytest.mark.parametrize("trait", TRAITS)
def test_header_agrees_with_the_gguf_package(trait: Any) -> None:
    path = built(tiny, trait)
    header, reference = read_header(path), GGUFReader(path)
    assert header.n_tensors == len(reference.tensors)
    assert header.weights_bytes == sum(int(tensor.n_bytes) for tensor in reference.tensors)
    fields = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    for key, field in fields.items():
        if len(field.types) == 1 and key in header.metadata:
            assert header.metadata[key] == pytest.approx(field.contents())
    assert header.n_vocab == len(fields["tokenizer.ggml.tokens"].data)
    assert fields.keys() == header.metadata.keys() | header.lengths.keys()


def test_real_vocabularies_are_walked_to_their_end() -> None:
    folder = built(llama_cpp_source) / "vendor/llama.cpp/models"
    vocabularies = sorted(folder.glob("ggml-vocab-*.gguf"))
    assert len(vocabularies) > 10
    for path in vocabularies:
        with pytest.raises(GgufError, match="vocabulary without weights"):
            read_header(path)


def test_second_reading_of_an_unchanged_file_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    assert read_header(path) is read_header(path)
    path.write_bytes(gguf({**MODEL, "general.name": "Other"}))
    assert read_header(path).name == "Other"


def test_large_vocabulary_costs_little_memory_and_no_numpy(tmp_path: Path) -> None:
    tokens = [f"token-{n}" for n in range(150_000)]
    content = gguf({**MODEL, "tokenizer.ggml.tokens": tokens}, TENSORS[1:])
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header.n_vocab == 150_000
    assert peak < 4 << 20


# ── what is refused ──


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("empty", "not a GGUF file: it is shorter"),
        ("not-a-gguf", "not a GGUF file: it begins with b'This'"),
        ("header-truncated", "is truncated: it has 500 bytes and needs"),
        ("truncated", "is truncated: it has"),
        ("wrong-vocabulary", "has the wrong vocabulary: "),
    ],
)
def test_broken_file_is_refused(kind: Any, expected: str) -> None:
    path = built(broken, kind)
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert expected in caught.value.message


def test_directory_and_absent_file_raise_os_errors(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_header(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent")


def test_truncated_file_names_both_sizes(tmp_path: Path) -> None:
    whole = gguf()
    message = refusal(tmp_path, whole[:-40])
    assert f"it has {len(whole) - 40} bytes and needs {len(whole)} at least" in message


@pytest.mark.parametrize("n_bytes", [0, 3, 4, 6, 8, 20, 24, 30, 100])
def test_cut_anywhere_is_refused(tmp_path: Path, n_bytes: int) -> None:
    assert "is truncated" in refusal(tmp_path, gguf()[:n_bytes]) or n_bytes < 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gguf(version=1), "version 1; 2 and 3"),
        (gguf(version=3 << 24), "big-endian"),
        (gguf({**MODEL, "general.type": "adapter"}), "an adapter (LoRA)"),
        (gguf({**MODEL, "general.type": "imatrix"}), "an importance matrix"),
        (gguf({**MODEL, "general.architecture": "clip"}), "image projector"),
        (gguf({"general.name": "x"}), "does not say its architecture"),
        (gguf({**MODEL, "general.architecture": 7}), "does not say its architecture"),
        (gguf({**MODEL, "split.count": 3}), "one of 3 parts"),
        (gguf(tensors=[]), "a vocabulary without weights"),
        (gguf({**MODEL, "general.alignment": 0}), "alignment is 0"),
        (gguf({**MODEL, "llama.block_count": 4_000_000_000}), "claims 4000000000 layers"),
        (gguf(tensors=[("x", (64,), 99)]), "unknown type 99 (x)"),
        (gguf(tensors=[("x", (100,), 12)]), "x cannot be [100] of Q4_K"),
        (gguf(tensors=[("x", (1 << 62, 1 << 62), 0)], data=False), "cannot be"),
        (gguf(tensors=[("x", (1,) * 5, 0)]), "claims 5 dimensions of x"),
        (gguf({**MODEL, "x": struct.pack("<I", 77)}), "x has the unknown type 77"),
        (gguf({**MODEL, "x": struct.pack("<IIQ", ARRAY, ARRAY, 1)}), "an array of type 9"),
    ],
)  # fmt: skip
def test_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refusal(tmp_path, content)


HUGE = 1 << 60


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE),
        gguf({"x": struct.pack("<IQ", STRING, HUGE)}),
        gguf({"x": struct.pack("<IIQ", ARRAY, STRING, HUGE)}),
        gguf({"x": struct.pack("<IIQ", ARRAY, STRING, 1 << 22)}),
        gguf({"x": struct.pack("<IIQQ", ARRAY, STRING, 2, HUGE)}),
        gguf({"x": struct.pack("<IIQ", ARRAY, U64, HUGE)}),
        gguf({"x": struct.pack("<IIQ", ARRAY, U32, 4000)}, data=False),
    ],
)
def test_hostile_size_allocates_nothing(tmp_path: Path, content: bytes) -> None:
    tracemalloc.start()
    message = refusal(tmp_path, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "is damaged" in message or "is truncated" in message
    assert peak < 4 << 20


def test_many_arrays_are_counted_and_few_are_kept(tmp_path: Path) -> None:
    numbers = list(range(4096))
    header = read(tmp_path, gguf(MODEL | {f"k{i}": numbers for i in range(100)}))
    assert header.lengths["k99"] == 4096
    assert sum(len(v) for v in header.metadata.values() if isinstance(v, tuple)) <= 1 << 16


def test_endless_list_in_a_sparse_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + string("x")
    with path.open("wb") as file:
        file.write(head + struct.pack("<IIQ", ARRAY, STRING, 1 << 35))
        file.truncate(1 << 40)
    started = time.process_time()
    with pytest.raises(GgufError, match="claims a list of"):
        read_header(path)
    assert time.process_time() - started < 5


WHOLE = gguf()


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=64).map(lambda tail: b"GGUF" + tail),
        st.builds(
            lambda at, piece: WHOLE[:at] + piece + WHOLE[at + len(piece) :],
            st.integers(0, len(WHOLE)),
            st.one_of(st.binary(max_size=9), st.just(b"\xff" * 8), st.just(b"\0" * 8)),
        ),
    )
)
def test_damaged_bytes_raise_nothing_but_gguf_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except GgufError:
        return
    assert header.block_count <= 4096
    assert header.kind in ("chat", "embeddings", "rerank")
    assert len(header.per_layer("attention.head_count_kv", 1)) == header.block_count

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged import plan
from edged.config import Config, HardwareOverrides, LlamaCppOptions, Model, Server, Source
from edged.errors import ModelNotFound, WrongModelKind
from edged.hardware import Cpu, Engines, Gpu, Hardware, Memory
from edged.plan import Diff, ModelPlan, Plan
from edged.plan import kind as kinds
from edged.protocol import (
    Detokenize,
    Embed,
    Generate,
    Kind,
    Launch,
    Messages,
    PrefixCache,
    Render,
    Request,
    Rerank,
    Sampling,
    Text,
    Tokenize,
)
from tests.unit.gguf_bytes import MODEL, TENSORS, gguf

GIB = 1 << 30


def box(
    limit: int = 8 * GIB, cores: int = 4, engines: Engines | None = None, gpus: tuple[Gpu, ...] = ()
) -> Hardware:
    return Hardware(
        cpu=Cpu("test", "x86_64", cores, cores, cores),
        memory=Memory(limit, limit, limit),
        gpus=gpus,
        engines=engines or Engines(llamacpp="0.3.36"),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.gguf").write_bytes(gguf())
    return tmp_path


def one(folder: Path, hardware: Hardware | None = None, **fields: Any) -> ModelPlan:
    """Return the plan of one model whose file is `a.gguf` in the folder."""
    fields = {"gguf": Source("file", "a.gguf"), "context": 1024, "parallel": 2, **fields}
    config = Config(path=str(folder / "models.toml"), models={"a": Model(name="a", **fields)})
    return plan.make(config, hardware or box()).models["a"]


def refusal(folder: Path, hardware: Hardware | None = None, **fields: Any) -> str:
    found = one(folder, hardware, **fields)
    assert found.engine is None
    assert found.launch is None
    assert found.refusal
    assert any(reason in found.refusal for reason in found.reasons)
    return found.refusal


# ── what can run ──


def test_gguf_runs_on_llamacpp(folder: Path) -> None:
    found = one(folder)
    assert found.engine == "llamacpp"
    assert found.refusal is None
    assert found.launch is not None
    assert found.launch.path == str(folder / "a.gguf")
    assert (found.launch.context, found.launch.parallel, found.launch.pool) == (1024, 2, 2048)
    assert found.memory is not None
    assert found.memory.weights_bytes == 4 * (64 * 4 + 2 * 64 * 32)
    assert found.reasons == ("llama.cpp on the CPU: about 63.8 MiB of the 7 GiB for models",)


def test_replaced_file_has_another_identity(folder: Path) -> None:
    before = one(folder).launch
    assert before == one(folder).launch
    (folder / "new").write_bytes(gguf())
    (folder / "new").rename(folder / "a.gguf")
    after = one(folder).launch
    assert before is not None
    assert after is not None
    assert before.file_id != after.file_id


@pytest.mark.parametrize(
    ("cores", "options", "threads", "threads_batch"),
    [
        (1, {}, 1, 1),
        (2, {}, 2, 2),
        (4, {}, 3, 4),
        (4, {"threads": 2}, 2, 2),
        (4, {"threads": 2, "threads_batch": 4}, 2, 4),
        (4, {"threads_batch": 1}, 3, 1),
    ],
)
def test_threads_leave_room_for_the_box(
    folder: Path, cores: int, options: dict[str, int], threads: int, threads_batch: int
) -> None:
    launch = one(folder, box(cores=cores), llamacpp=LlamaCppOptions(**options)).launch
    assert launch is not None
    assert launch.llamacpp is not None
    assert (launch.llamacpp.threads, launch.llamacpp.threads_batch) == (threads, threads_batch)


def test_upstream_has_no_worker(folder: Path) -> None:
    found = one(folder, gguf=None, upstream="http://10.0.0.7:8000/v1")
    assert (found.engine, found.launch, found.refusal) == ("upstream", None, None)
    assert found.reasons == ("requests are passed on to http://10.0.0.7:8000/v1",)


def test_default_context_is_lowered_to_the_trained_one_and_said(folder: Path) -> None:
    found = one(folder, context=8192, context_is_default=True)
    assert found.launch is not None
    assert (found.launch.context, found.launch.pool) == (4096, 8192)
    assert found.context == 4096
    assert found.model.context == 8192
    assert any("context is 4096, not the default 8192" in reason for reason in found.reasons)


def test_wishes_without_effect_are_said(folder: Path) -> None:
    reasons = one(folder, llamacpp=LlamaCppOptions(gpu_layers=99, threads=64)).reasons
    assert any("gpu_layers = 99 has no effect" in reason for reason in reasons)
    assert any("more than the 4 CPUs" in reason for reason in reasons)


# ── kinds ──

BERT = {key.replace("llama.", "bert."): value for key, value in MODEL.items()} | {
    "general.architecture": "bert",
}
HEAD = ("cls.output.weight", (64, 1), 0)


@pytest.mark.parametrize(
    ("metadata", "fields", "kind", "pooling"),
    [
        (MODEL, {}, "chat", None),
        (BERT | {"bert.pooling_type": 1}, {}, "embeddings", "mean"),
        (BERT | {"bert.pooling_type": 2}, {}, "embeddings", "cls"),
        (MODEL | {"llama.pooling_type": 3}, {}, "embeddings", "last"),
        (BERT, {"llamacpp": LlamaCppOptions(pooling="mean")}, "embeddings", "mean"),
        (
            MODEL,
            {"kind": "embeddings", "llamacpp": LlamaCppOptions(pooling="last")},
            "embeddings",
            "last",
        ),
        (BERT | {"bert.pooling_type": 4}, {}, "rerank", "rank"),
        (BERT | {"bert.pooling_type": 1}, {"kind": "rerank"}, "rerank", "rank"),
    ],
)
def test_kind_is_the_files_or_the_configurations(
    folder: Path, metadata: dict[str, Any], fields: dict[str, Any], kind: str, pooling: str | None
) -> None:
    (folder / "a.gguf").write_bytes(gguf(metadata, [*TENSORS, HEAD]))
    found = one(folder, **fields)
    assert found.refusal is None
    assert found.launch is not None
    assert found.launch.llamacpp is not None
    assert (found.kind, found.launch.kind) == (kind, kind)
    assert found.launch.llamacpp.pooling == pooling


def test_pooling_against_the_file_is_said(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(gguf(MODEL | {"llama.pooling_type": 1}))
    found = one(folder, llamacpp=LlamaCppOptions(pooling="last"))
    assert "pooling is last, though its file says mean" in found.reasons


def test_embeddings_share_one_pool_and_take_many_requests(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(gguf(BERT | {"bert.pooling_type": 1}))
    found = one(folder, parallel=4, parallel_is_default=True)
    assert found.launch is not None
    assert (found.launch.parallel, found.model.parallel) == (32, 32)
    assert found.launch.pool == 1024
    assert found.memory is not None
    assert found.memory.kv_bytes == 0
    said = one(folder, parallel=4)
    assert said.launch is not None
    assert said.launch.parallel == 4
    assert said.memory == found.memory
    short = one(folder, context=100).launch
    assert short is not None
    assert short.pool == 512


def test_default_context_of_an_encoder_gives_way_to_the_memory(folder: Path) -> None:
    tokens = [str(n) for n in range(50_000)]
    metadata = BERT | {"bert.pooling_type": 1, "tokenizer.ggml.tokens": tokens}
    tensors = [("token_embd.weight", (8, 50_000), 0), *TENSORS[1:]]
    (folder / "a.gguf").write_bytes(gguf(metadata, tensors))
    small = box(limit=GIB)
    found = one(folder, small, context=8192, context_is_default=True)
    assert found.refusal is None
    assert found.context == 2048
    assert "context is 2048, not 4096: more does not fit in memory" in found.reasons
    assert "the box allows 768 MiB" in refusal(folder, small, context=4096)
    tiny_box = box(limit=200 << 20)
    assert "lower context" in refusal(folder, tiny_box, context=8192, context_is_default=True)


CONVERSATION = Messages([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (Generate(CONVERSATION), "chat"),
        (Generate(Text("a")), "chat"),
        (Render(CONVERSATION), "chat"),
        (Embed([Text("a")]), "embeddings"),
        (Rerank("q", ["d"]), "rerank"),
    ],
)
def test_request_of_another_kind_is_refused_with_what_fits(asked: Request, fits: Kind) -> None:
    ways: dict[Kind, str] = {
        "chat": "/v1/chat/completions",
        "embeddings": "/v1/embeddings",
        "rerank": "/v1/rerank",
    }
    for kind, way in ways.items():
        if kind == fits:
            kinds.check(kind, asked)
            continue
        with pytest.raises(WrongModelKind) as caught:
            kinds.check(kind, asked)
        assert way in caught.value.message
        assert caught.value.param == "model"
    kinds.check(None, asked)


def test_every_kind_can_tokenize() -> None:
    for kind in get_args(Kind):
        kinds.check(kind, Tokenize("a"))
        kinds.check(kind, Detokenize([1]))


# ── what cannot ──


def test_context_beyond_the_trained_one_is_refused_with_both(folder: Path) -> None:
    assert refusal(folder, context=5000) == (
        "context = 5000 is beyond the 4096 tokens that the model was trained on: "
        "set context = 4096 or less"
    )


def test_model_that_does_not_fit_is_refused_with_the_figures(folder: Path) -> None:
    message = refusal(folder, box(limit=120 << 20), parallel=256, context=4096)
    # two layers of 2 heads x 16 values, keys and values, two bytes each: 256 B a token
    assert "KV 256 MiB for 256 × 4096 tokens" in message  # noqa: RUF001
    assert "the box allows 90 MiB: lower context or parallel" in message
    assert message.startswith("needs 1.3 GiB (weights 17 KiB, ")


def test_reserve_of_the_configuration_counts(folder: Path) -> None:
    config = Config(path=str(folder / "m"), hardware=HardwareOverrides(reserve_memory_bytes=GIB))
    assert plan.make(config, box(4 * GIB)).budget_bytes == 3 * GIB
    assert plan.make(config, box(GIB // 2)).budget_bytes == 0
    assert plan.make(Config(), box(8 * GIB)).budget_bytes == 7 * GIB
    assert plan.make(Config(), box(2 * GIB)).budget_bytes == GIB * 3 // 2


def test_absent_llamacpp_says_how_to_install_it(folder: Path) -> None:
    message = refusal(folder, box(engines=Engines()))
    assert message.startswith("llama-cpp-python is not installed: pip install")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"gguf": Source("file", "no.gguf")}, "no.gguf does not exist"),
        ({"gguf": Source("file", ".")}, "is a directory"),
        ({"gguf": Source("file", "text.gguf")}, "is not a GGUF file"),
        ({"gguf": Source("file", "cut.gguf")}, "is truncated"),
        ({"gguf": Source("file", "empty.gguf")}, "is empty"),
        ({"gguf": Source("file", "wrong.gguf")}, "wrong vocabulary: 4 tokens for 7 embeddings"),
        ({"gguf": Source("file", "bert.gguf")}, "its file does not say how it pools"),
        ({"kind": "embeddings"}, 'set llamacpp.pooling = "mean", "cls" or "last"'),
        ({"kind": "rerank"}, "no classifier head"),
        ({"gguf": Source("file", "rank.gguf")}, "no classifier head"),
        ({"gguf": Source("file", "embed.gguf"), "kind": "chat"}, "an embeddings model: remove"),
        ({"llamacpp": LlamaCppOptions(pooling="cls")}, 'remove it, or set kind = "embeddings"'),
        ({"require": "gpu"}, 'require = "gpu"'),
        ({"sampling": Sampling(logit_bias={4: 1.0})}, "token 4, and the vocabulary has 4 tokens"),
    ],
)
def test_refusal_says_what_to_mend(folder: Path, fields: dict[str, Any], expected: str) -> None:
    (folder / "text.gguf").write_text("hello")
    (folder / "cut.gguf").write_bytes(gguf()[:-9])
    (folder / "empty.gguf").touch()
    (folder / "wrong.gguf").write_bytes(gguf(tensors=[("token_embd.weight", (64, 7), 0)]))
    (folder / "embed.gguf").write_bytes(gguf({**MODEL, "llama.pooling_type": 1}))
    (folder / "rank.gguf").write_bytes(gguf({**MODEL, "llama.pooling_type": 4}))
    (folder / "bert.gguf").write_bytes(gguf(BERT))
    assert expected in refusal(folder, **fields)


NVIDIA = Gpu(0, "RTX 3090", 24 * GIB, 24 * GIB, (8, 6), "550", "nvml")
OLD = Gpu(0, "GTX 1080", 8 * GIB, 8 * GIB, (6, 1), "550", "nvml")


@pytest.mark.parametrize(
    ("gpus", "lmdeploy", "expected"),
    [
        ((), None, "no NVIDIA GPU"),
        ((OLD,), None, "GTX 1080 has 6.1"),
        ((NVIDIA,), None, "it is not installed: `edged setup-cuda`"),
    ],
)
def test_lmdeploy_is_rejected_with_its_reason(
    folder: Path, gpus: tuple[Gpu, ...], lmdeploy: str | None, expected: str
) -> None:
    hardware = box(gpus=gpus, engines=Engines(llamacpp="1", lmdeploy=lmdeploy))
    source = Source("hf", "Qwen/Qwen3-8B-AWQ")
    assert expected in refusal(folder, hardware, gguf=None, safetensors=source)
    assert expected in refusal(folder, hardware, safetensors=source, backend="lmdeploy")
    both = one(folder, hardware, safetensors=source)
    assert both.engine == "llamacpp"
    assert expected in both.reasons[0]


def test_one_refused_model_leaves_the_others(folder: Path) -> None:
    models = {
        "bad": Model(name="bad", gguf=Source("file", "no.gguf")),
        "good": Model(name="good", gguf=Source("file", "a.gguf"), context=64),
    }
    made = plan.make(Config(path=str(folder / "m"), models=models), box())
    assert [found.engine for found in made.models.values()] == [None, "llamacpp"]


# ── names ──


def test_aliases_resolve_and_unknown_names_list_what_exists(folder: Path) -> None:
    models = {
        "qwen": Model(name="qwen", gguf=Source("file", "a.gguf"), aliases=("gpt-4o",)),
        "other": Model(name="other", gguf=Source("file", "a.gguf")),
    }
    made = plan.make(Config(path=str(folder / "m"), models=models), box())
    assert made.resolve("gpt-4o") is made.resolve("qwen")
    with pytest.raises(ModelNotFound) as caught:
        made.resolve("qwem")
    assert caught.value.message == (
        "no model is called 'qwem' (did you mean \"qwen\"?); there are: qwen, other"
    )
    with pytest.raises(ModelNotFound, match="has no"):
        plan.make(Config(), box()).resolve("x")


# ── diff ──


def test_first_plan_adds_everything(folder: Path) -> None:
    models = {"a": Model(name="a", gguf=Source("file", "a.gguf"), context=64)}
    made = plan.make(Config(path=str(folder / "m"), models=models), box())
    assert plan.diff(None, made) == Diff(added=("a",), server=True)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "unchanged"),
        ({"aliases": ("x",)}, "updated"),
        ({"idle_unload_s": None}, "updated"),
        ({"pin": True}, "updated"),
        ({"queue": 1}, "updated"),
        ({"sampling": Sampling(temperature=0.1)}, "updated"),
        ({"load": "startup"}, "updated"),
        ({"context": 512}, "replaced"),
        ({"parallel": 1}, "replaced"),
        ({"output_format": "llama3"}, "replaced"),
        ({"llamacpp": LlamaCppOptions(kv_type="q8_0")}, "replaced"),
        ({"llamacpp": LlamaCppOptions(threads=1)}, "replaced"),
        ({"gguf": Source("file", "no.gguf")}, "replaced"),
        ({"gguf": None, "upstream": "http://x/v1"}, "replaced"),
    ],
)
def test_change_of_a_key_replaces_only_if_the_launch_differs(
    folder: Path, fields: dict[str, Any], kind: str
) -> None:
    config = Config(path=str(folder / "m"))
    base = {"gguf": Source("file", "a.gguf"), "context": 1024}
    old = plan.make(replace(config, models={"a": Model(name="a", **base)}), box())  # type: ignore[arg-type]
    new = plan.make(replace(config, models={"a": Model(name="a", **{**base, **fields})}), box())  # type: ignore[arg-type]
    assert getattr(plan.diff(old, new), kind) == ("a",)
    assert plan.diff(old, new).server is False


def test_model_that_becomes_possible_is_replaced(folder: Path) -> None:
    config = Config(
        path=str(folder / "m"),
        models={"b": Model(name="b", gguf=Source("file", "b.gguf"), context=64)},
    )
    before = plan.make(config, box())
    (folder / "b.gguf").write_bytes(gguf())
    assert plan.diff(before, plan.make(config, box())).replaced == ("b",)


def test_server_change_is_flagged(folder: Path) -> None:
    old = plan.make(Config(path=str(folder / "m")), box())
    new = plan.make(Config(path=str(folder / "m"), server=Server(max_body_bytes=1)), box())
    assert plan.diff(old, new) == Diff(server=True)


launches = st.builds(
    Launch,
    model=st.just("m"),
    engine=st.just("llamacpp"),
    path=st.sampled_from(["/a", "/b"]),
    file_id=st.just("1"),
    context=st.integers(1, 2),
    parallel=st.just(1),
    pool=st.just(1),
)
model_plans = st.builds(
    ModelPlan,
    model=st.builds(Model, name=st.just("m"), queue=st.integers(0, 1)),
    engine=st.sampled_from(["llamacpp", "upstream", None]),
    launch=st.one_of(st.none(), launches),
    reasons=st.sampled_from([(), ("x",)]),
)


def plan_of(models: dict[str, ModelPlan]) -> Plan:
    return Plan(Config(), box(), models, {})


plans = st.dictionaries(st.sampled_from("abcde"), model_plans, max_size=5).map(plan_of)


@given(plans)
def test_diff_of_a_plan_with_itself_is_empty(some: Plan) -> None:
    assert plan.diff(some, some) == Diff(unchanged=tuple(some.models))


@given(plans, plans)
def test_applying_the_diff_reaches_the_new_plan(old: Plan, new: Plan) -> None:
    difference = plan.diff(old, new)
    state = dict(old.models)
    for name in difference.removed:
        del state[name]
    for name in (*difference.added, *difference.replaced, *difference.updated):
        state[name] = new.models[name]
    assert state == new.models
    assert all(name not in old.models for name in difference.added)
    parts = (difference.added, difference.replaced, difference.updated, difference.unchanged)
    assert sorted(sum(parts, ())) == sorted(new.models)
    for name in (*difference.updated, *difference.unchanged):
        assert old.models[name].launch == new.models[name].launch


def test_tensor_names_decide_which_layers_keep_kv(folder: Path) -> None:
    recurrent = [TENSORS[0], TENSORS[1], ("blk.1.ssm_in.weight", (64, 32), 0)]
    extra = {"llama.ssm.inner_size": 8, "llama.ssm.state_size": 4, "llama.ssm.conv_kernel": 3}
    (folder / "a.gguf").write_bytes(gguf({**MODEL, **extra}, recurrent))
    found = one(folder).memory
    assert found is not None
    state = 2 * (8 + 0) + 4 * 8
    assert found.kv_bytes == 2048 * 2 * 16 * 2 * 2 + (2 + 8) * state * 4


@pytest.mark.parametrize(
    ("of_model", "of_all", "expected"),
    [(3 << 30, 5 << 30, 3 << 30), (3 << 30, 1 << 30, 1 << 30), (0, 5 << 30, 0), (1 << 30, 0, 0)],
)
def test_saved_prefixes_have_both_budgets(
    folder: Path, of_model: int, of_all: int, expected: int
) -> None:
    options = LlamaCppOptions(prefix_cache_bytes=of_model)
    model = Model(name="a", gguf=Source("file", "a.gguf"), context=1024, llamacpp=options)
    config = Config(
        path=str(folder / "models.toml"),
        server=Server(prefix_cache_max_bytes=of_all),
        models={"a": model},
    )
    launch = plan.make(config, box()).models["a"].launch
    assert launch is not None
    assert launch.llamacpp is not None
    assert launch.llamacpp.prefix_cache == PrefixCache(bytes=expected, total=of_all)

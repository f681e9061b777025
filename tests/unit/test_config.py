from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edged import config
from edged.config import ConfigProblems, Listen, Model, Source
from edged.config.keys import HARDWARE, MODEL, SERVER
from edged.protocol import Sampling
from tests.unit.toml_text import to_toml

ROOT = Path(__file__).parent.parent.parent
MINIMAL = '[models.a]\ngguf = "file:/a.gguf"\n'


def parse(text: str) -> config.Config:
    return config.parse(text.encode(), Path("/etc/edged/models.toml"))


def problems(text: str | bytes) -> list[str]:
    """Return the problems of a text as `line: message`."""
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigProblems) as caught:
        config.parse(content, Path("models.toml"))
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


def model(lines: str, table: str = "models.a") -> str:
    return f'[{table}]\ngguf = "file:/a.gguf"\n{lines}\n'


# ── what is read ──


def test_root_file_loads() -> None:
    found = config.load(ROOT / "models.toml")
    assert found.models["edge-guide"].gguf == Source("builtin", "edge-guide")
    assert found.models["edge-guide"].load == "startup"
    assert found.path == str(ROOT / "models.toml")


def test_empty_file_means_defaults() -> None:
    found = parse("")
    assert found.models == {}
    assert found.server.listen == (Listen("tcp", "127.0.0.1", 8000),)
    assert found.server.auth == "auto"


def test_every_key_reaches_its_field() -> None:
    found = parse("""
[server]
listen = ["127.0.0.1:0", "[::1]:8001", "unix:/run/edged/api.sock", "localhost:9"]
auth = "none"
allow = ["10.0.0.0/8", "::1"]
max_body = "64MiB"
tls.mode = "off"
[hardware]
reserve_memory = "0.5GiB"
gpus = [0, 1]
[models."qwen3-8b"]
gguf = "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M@main"
safetensors = "ms:Qwen/Qwen3-8B-AWQ"
aliases = ["gpt-4o-mini", "Qwen/Qwen3"]
backend = "auto"
require = "gpu"
load = "startup"
pin = true
idle_unload = "never"
context = 16384
parallel = 2
queue = 0
sampling = { temperature = 0, top_p = 0.9, seed = -1, logit_bias = { 7 = -100 } }
llamacpp = { threads = 3, kv_type = "q8_0", batch = 256, flash_attention = "on" }
lmdeploy = { tp = 2, quant_policy = 8, cache_max_entry_count = 0.5 }
[models.big]
upstream = "http://10.0.0.7:8000/v1/"
""")
    assert [str(address) for address in found.server.listen] == [
        "127.0.0.1:0",
        "[::1]:8001",
        "unix:/run/edged/api.sock",
        "127.0.0.1:9",
    ]
    assert found.server.allow == ("10.0.0.0/8", "::1/128")
    assert found.server.max_body_bytes == 64 << 20
    assert found.hardware.reserve_memory_bytes == 512 << 20
    assert found.hardware.gpus == (0, 1)
    qwen = found.models["qwen3-8b"]
    assert str(qwen.gguf) == "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M@main"
    assert qwen.safetensors == Source("ms", "Qwen/Qwen3-8B-AWQ")
    assert (qwen.idle_unload_s, qwen.context, qwen.parallel, qwen.queue) == (None, 16384, 2, 0)
    assert qwen.sampling == Sampling(temperature=0.0, top_p=0.9, seed=-1, logit_bias={7: -100.0})
    assert (qwen.llamacpp.threads, qwen.llamacpp.kv_type, qwen.llamacpp.batch) == (3, "q8_0", 256)
    assert (qwen.lmdeploy.tp, qwen.lmdeploy.quant_policy) == (2, 8)
    assert found.models["big"].upstream == "http://10.0.0.7:8000/v1"


def test_defaults_are_merged_key_by_key() -> None:
    found = parse("""
[defaults]
context = 4096
idle_unload = "2h"
sampling = { temperature = 0.5, top_k = 40 }
llamacpp = { threads = 4 }
[models.a]
gguf = "file:a.gguf"
[models.a.sampling]
top_k = 10
[models.b]
gguf = "file:b.gguf"
context = 1024
""")
    first, second = found.models["a"], found.models["b"]
    assert (first.context, first.context_is_default, first.idle_unload_s) == (4096, True, 7200.0)
    assert first.sampling == Sampling(temperature=0.5, top_k=10)
    assert first.llamacpp.threads == 4
    assert (second.context, second.context_is_default) == (1024, False)


def test_byte_order_mark_and_windows_lines_are_read() -> None:
    content = b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()
    assert list(config.parse(content, Path("m.toml")).models) == ["a"]


def test_names_differ_by_case() -> None:
    assert set(parse(MINIMAL + model("", table="models.A")).models) == {"a", "A"}


def test_find_prefers_explicit_then_here_then_etc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.find("x.toml") == Path("x.toml")
    assert config.find(None) == config.SYSTEM_PATH
    (tmp_path / "models.toml").touch()
    assert config.find(None) == Path("models.toml")


# ── what is refused ──


def test_all_problems_come_at_once_with_their_lines() -> None:
    found = problems("""
[server]
max_bdy = "32MiB"
[server.tls]
mode = "files"
[models.a]
gguf = "/srv/a.gguf"
contxt = 1
[models.b]
context = "8k"
""")
    assert [line.split(":")[0] for line in found] == ["3", "5", "7", "8", "9", "10"]
    assert found[0] == '3: server.max_bdy is not a known key; did you mean "max_body"?'
    assert "needs cert and key" in found[1]
    assert 'did you mean "file:/srv/a.gguf"?' in found[2]
    assert "has no source" in found[4]
    assert found[5] == '10: models.b.context must be a whole number from 1 to 16777216, not "8k"'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("context = 0", "whole number from 1"),
        ("context = true", "whole number"),
        ("context = 8192.0", "whole number"),
        ("parallel = 257", "from 1 to 256, not 257"),
        ('kind = "embedding"', 'did you mean "embeddings"?'),
        ('output_format = "qwen-coder"', 'did you mean "qwen3-coder"?'),
        ('llamacpp.pooling = "none"', 'must be "mean" or "cls" or "last", not "none"'),
        ("sampling.dry_sequence_breakers = [1]", "must be a list of up to 64 texts"),
        ("sampling.xtc_probability = 2", "from 0 to 1, not 2"),
        ("queue = -1", "from 0"),
        ("pin = 1", "true or false, not 1"),
        ('load = "on_demand"', 'did you mean "on-demand"?'),
        ('backend = "llama.cpp"', 'did you mean "llamacpp"?'),
        ('require = "cpu"', '"any" or "gpu"'),
        ("idle_unload = 15", 'such as "90s"'),
        ('idle_unload = "15 minutes"', 'such as "90s"'),
        ('idle_unload = "0s"', "one second at least"),
        ('idle_unload = "nevr"', 'or "never"'),
        ('aliases = "gpt-4"', "a list of names"),
        ('aliases = ["b", "b"]', '"b" twice'),
        ('aliases = ["a"]', "already the name"),
        ('aliases = [" b"]', "blanks"),
        ("sampling.temperature = 2.1", "from 0 to 2"),
        ("sampling.temperature = nan", "from 0 to 2, not nan"),
        ("sampling.top_p = -0.1", "from 0 to 1"),
        ("sampling.top_k = 1.5", "whole number"),
        ("sampling.seed = 9223372036854775808", "whole number"),
        ("sampling.repeat_penalty = 0", "0.01 to 10"),
        ("sampling.presence_penalty = inf", "from -2 to 2"),
        ("sampling.logit_bias = [1]", "a table of token id = bias"),
        ("sampling.logit_bias = { x = 1 }", "token ids as keys"),
        ("sampling.logit_bias = { 1 = 101 }", "from -100 to 100"),
        ("sampling = 1", "must be a table: write [models.a.sampling]"),
        ('llamacpp.kv_type = "q8"', 'did you mean "q8_0"?'),
        ("llamacpp.threads = 0", "from 1"),
        ('llamacpp.lora = "x"', "must be a table of names"),
        ('llamacpp = { kv_type = "q4_0", flash_attention = "off" }', "needs flash attention"),
        ("lmdeploy.quant_policy = 5", "0 or 4 or 8, not 5"),
        ("temperature = 1", "[models.NAME.sampling]"),
        ('listen = "x"', "belongs into [server]"),
        ('upstream = "http://x/v1"', "cannot be combined with gguf"),
        ('backend = "lmdeploy"', "needs safetensors"),
        ('backend = "upstream"', "needs upstream"),
        ("context = 0x" + "f" * 5000, "a number far too large"),
    ],
)
def test_model_problem_is_named(lines: str, expected: str) -> None:
    found = problems(model(lines))
    assert len(found) == 1, found
    assert found[0].startswith("3: ")
    assert expected in found[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('listen = "127.0.0.1:8000"', "a list of addresses"),
        ("listen = []", "a list of addresses"),
        ('listen = ["127.0.0.1"]', "must be an address"),
        ('listen = [":8000"]', '"0.0.0.0:8000"'),
        ('listen = ["127.0.0.1:70000"]', "must be an address"),
        ('listen = ["::1:8000"]', "must be an address"),
        ('listen = ["[127.0.0.1]:8000"]', "must be an address"),
        ('listen = ["example.org:80"]', "names are not looked up"),
        ('listen = ["unix:api.sock"]', "absolute path"),
        (f'listen = ["unix:/{"x" * 200}"]', "too long"),
        ('listen = ["127.0.0.1:1", "127.0.0.1:1"]', "twice"),
        ('auth = "non"', 'did you mean "none"?'),
        ('allow = ["10.0.0.1/8"]', 'did you mean "10.0.0.0/8"?'),
        ('allow = ["10.0.0.0/33"]', "a network"),
        ('allow = ["lan"]', "a network"),
        ("max_body = 32", "a size such as"),
        ('max_body = "32MB"', 'did you mean "32MiB"?'),
        ('max_body = "1B"', "from 1 KiB to 1 GiB"),
        ('hosts = ["127.0.0.1"]', "the name of a host"),
        ('cors = ["example.org"]', "must be an origin"),
        ('tls.mode = "files"\ntls.cert = "/a.pem"', 'needs key = "/path'),
        ('tls.cert = "a.pem"', "an absolute path"),
        ('tls.listen = ["unix:/a"]', "must be an address"),
        ('tls.mode = "on"', '"off" or'),
        ('tls = "off"', "must be a table: write [server.tls]"),
        ("context = 4", "belongs into [defaults]"),
    ],
)
def test_server_problem_is_named(lines: str, expected: str) -> None:
    found = problems(f"[server]\n{lines}\n")
    assert len(found) == 1, found
    assert found[0].startswith("2: ")
    assert expected in found[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('gpus = "all"', '"auto" or "none" or a list'),
        ("gpus = [-1]", "item 1 must be"),
        ("gpus = []", "a list of GPU numbers"),
        ('reserve_memory = "-1GiB"', "a size"),
    ],
)
def test_hardware_problem_is_named(lines: str, expected: str) -> None:
    found = problems(f"[hardware]\n{lines}\n")
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "",
        "qwen3",
        "/srv/a.gguf",
        "Qwen/Qwen3-8B",
        "file:",
        "file:~/a.gguf",
        "file://host/a.gguf",
        "builtin:",
        "builtin:../x",
        "hf:qwen",
        "hf:a/b/c",
        "hf:a/b:",
        "https://",
        "https:a.gguf",
        "http://x/a.gguf",
        "https://x:99999/a.gguf",
        "s3://x/a.gguf",
        "file:/a\\u0000b",
    ],
)
def test_source_that_does_not_parse_is_named(source: str) -> None:
    found = problems(f'[models.a]\ngguf = "{source}"\n')
    assert len(found) == 1, found
    assert found[0].startswith("2: models.a.gguf must be ")


@pytest.mark.parametrize(
    "url", ["x", "ftp://x", "http://", "http://x:y/", "http://u:p@x/v1", "http://x/?q"]
)
def test_upstream_that_is_no_url_is_named(url: str) -> None:
    found = problems(f'[models.a]\nupstream = "{url}"\n')
    assert len(found) == 1
    assert found[0].startswith("2: models.a.upstream must be ")


def test_model_without_source_is_named_at_its_header() -> None:
    assert problems(MINIMAL + "\n[models.b]\npin = true\n") == [
        '4: models.b has no source: give it gguf = "…", safetensors = "…" or upstream = "…"'
    ]


def test_alias_of_two_models_is_named() -> None:
    text = model('aliases = ["x"]') + model('aliases = ["x"]', table="models.b")
    (found,) = problems(text)
    assert found.startswith('6: models.b.aliases "x" is already the name of the model "a" (alias)')


def test_model_defined_twice_is_a_problem_with_line() -> None:
    assert problems(MINIMAL + MINIMAL) == ["3: is not TOML: Cannot declare [models.a] twice"]


def test_problem_in_defaults_is_named_once_for_all_models() -> None:
    text = "[defaults]\ncontext = 0\nlaod = 1\n" + MINIMAL + model("", table="models.b")
    assert [line.split(" ")[:2] for line in problems(text)] == [
        ["2:", "defaults.context"],
        ["3:", "defaults.laod"],
    ]


def test_upstream_in_defaults_conflicts_with_files() -> None:
    found = problems('[defaults]\nupstream = "http://x/v1"\n' + MINIMAL)
    assert len(found) == 1
    assert "cannot be combined with gguf" in found[0]


@pytest.mark.parametrize(
    "text", ["models = 1", "models = [1]", "server = 1", "defaults = 'x'", "[[models]]"]
)
def test_table_of_another_type_is_named(text: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith("1: ")
    assert "must be" in found[0]


def test_model_that_is_no_table_is_named() -> None:
    assert problems("[models]\na = 1\n")[0].startswith("2: models.a must be a table")


@pytest.mark.parametrize(
    ("content", "line", "expected"),
    [
        ("[models.a\n", 1, "is not TOML"),
        ('a = 1\n\n[x]\nb = "\n', 4, "is not TOML"),
        ("a = [1,\n2,\n", 3, "is not TOML"),
        (b"a = 1\nb = '\xff'\n", 2, "is not UTF-8"),
        ("a = " + "[" * 5000, 0, "nested too deeply"),
        ("a = " + "9" * 5000, 0, "is not TOML"),
    ],
)
def test_text_that_is_no_toml_is_named(content: str | bytes, line: int, expected: str) -> None:
    found = problems(content)
    assert len(found) == 1
    assert found[0].startswith(f"{line}: ")
    assert expected in found[0]


def test_hundred_problems_are_enough() -> None:
    found = problems("\n".join(f"k{n} = 1" for n in range(5000)))
    assert len(found) == 101
    assert "only the first 100" in found[-1]


# ── files that cannot be read ──


def refusal(path: Path) -> str:
    with pytest.raises(ConfigProblems) as caught:
        config.load(path)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_absent_file_is_a_problem(tmp_path: Path) -> None:
    assert refusal(tmp_path / "models.toml").endswith(
        "does not exist; give another with --config FILE"
    )


def test_directory_is_a_problem(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


def test_device_is_a_problem() -> None:
    assert "not a regular file" in refusal(Path("/dev/zero"))


def test_huge_file_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    with path.open("wb") as file:
        file.truncate(5 << 30)
    assert f"has {5 << 30} bytes" in refusal(path)


def test_file_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert "cannot be read" in refusal(tmp_path / "x" / "models.toml")


def test_unreadable_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models.toml"
    path.write_text(MINIMAL)

    def deny(_path: Path) -> bytes:  # root may read everything, so the kernel cannot play this
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert refusal(path) == f"{path}: cannot be read: Permission denied"


# ── properties ──

FRAGMENTS = st.sampled_from(
    ["[models.a]", "[defaults]", "[server]", "gguf", "=", '"file:/a"', "context", "[", "]", "{",
     "}", ",", ".", "\n", "'''", '"""', "#", " ", "1", "-", "true", "é", "\\", '"', "'", "0x", "\r"]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(FRAGMENTS, max_size=60).map("".join)))
@example(b"\xef\xbb\xbf")
@example("a.b.c.d.e.f.g.h = 1")
@example('a = """x\n"""" \nb = 1')
def test_load_raises_nothing_but_problems(content: bytes | str) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    try:
        config.parse(raw, Path("models.toml"))
    except ConfigProblems as error:
        found = error.problems
    else:
        return
    assert found
    assert all(0 <= problem.line <= raw.count(b"\n") + 1 for problem in found)


names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=12)
sources = st.sampled_from(["file:/a.gguf", "builtin:edge-guide", "hf:a/b:Q4@r", "https://x/y"])
values = {
    "backend": st.sampled_from(["auto", "llamacpp"]),
    "require": st.sampled_from(["any", "gpu"]),
    "kind": st.sampled_from(["auto", "chat", "embeddings", "rerank"]),
    "output_format": st.sampled_from(["auto", "hermes", "glm-4.5"]),
    "load": st.sampled_from(["on-demand", "startup"]),
    "pin": st.booleans(),
    "context": st.integers(1, 1 << 24),
    "parallel": st.integers(1, 256),
    "queue": st.integers(0, 1 << 20),
    "sampling": st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "top_k": st.integers(0, 1 << 24),
            "seed": st.integers(-(1 << 63), (1 << 63) - 1),
            "ignore_eos": st.booleans(),
            "min_tokens": st.integers(0, 1 << 24),
            "dry_penalty_last_n": st.integers(-1, 1 << 24),
            "dry_sequence_breakers": st.lists(st.sampled_from(["\n", ":", "“"]), max_size=3),
            "xtc_probability": st.floats(0, 1),
        },
    ),
    "llamacpp": st.fixed_dictionaries(
        {},
        optional={
            "threads": st.integers(1, 1024),
            "batch": st.integers(1, 1 << 16),
            "pooling": st.sampled_from(["mean", "cls", "last"]),
        },
    ),
}
models = st.dictionaries(
    names,
    st.fixed_dictionaries({"gguf": sources}, optional=values),
    max_size=4,
)


@given(models)
def test_valid_config_round_trips(tables: dict[str, dict[str, object]]) -> None:
    found = parse(to_toml({"models": tables})).models
    assert list(found) == list(tables)
    for name, table in tables.items():
        for key, value in table.items():
            field = getattr(found[name], key)
            if isinstance(value, dict):
                assert {part: getattr(field, part) for part in value} == value
            else:
                assert (str(field) if key == "gguf" else field) == value


KEYS = [
    (table, key)
    for table, keys in (("server", SERVER), ("hardware", HARDWARE), ("models.a", MODEL))
    for key in keys
] + [
    (f"models.a.{part}", key)
    for part in ("sampling", "llamacpp", "lmdeploy")
    for key in MODEL[part]  # type: ignore[union-attr]
]


@given(st.sampled_from(KEYS), st.data())
def test_single_typo_yields_a_suggestion(where: tuple[str, str], data: st.DataObject) -> None:
    table, key = where
    at = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    kinds = [
        key[:at] + key[at + 1 :],
        key[:at] + letter + key[at:],
        key[:at] + letter + key[at + 1 :],
    ]
    typo = data.draw(st.sampled_from(kinds))
    if not typo or (table, typo) in KEYS:
        return
    found = problems(f'[models.a]\ngguf = "file:/a"\n[{table}]\n{typo} = 1\n' if table != "models.a"
                     else f'[models.a]\ngguf = "file:/a"\n{typo} = 1\n')  # fmt: skip
    assert len(found) == 1
    assert "did you mean" in found[0] or "belongs into" in found[0]


def test_structs_hold_every_key() -> None:
    fields = set(Model.__struct_fields__)
    renamed = {"idle_unload": "idle_unload_s", "recycle_growth": "recycle_growth_bytes"}
    assert {renamed.get(key, key) for key in MODEL} == fields - {
        "name",
        "context_is_default",
        "parallel_is_default",
    }
    assert set(MODEL["sampling"]) == set(Sampling.__struct_fields__)  # type: ignore[arg-type]


def test_parallel_that_nobody_said_is_marked_as_such() -> None:
    both = "[models.a]\ngguf = 'file:/a'\n[models.b]\ngguf = 'file:/b'\nparallel = 4\n"
    silent = parse(both).models
    assert [silent[name].parallel_is_default for name in "ab"] == [True, False]
    shared = parse("[defaults]\nparallel = 4\n" + both).models
    assert [shared[name].parallel_is_default for name in "ab"] == [False, False]

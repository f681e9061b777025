import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest

from edged import config
from edged.config.keys import FIELDS, HARDWARE, MODEL, SERVER, STORE, Keys
from edged.config.sources import Scheme
from edged.protocol import Sampling

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs/configuration.md").read_text()
TABLES: dict[str, Keys] = {
    "server": SERVER,
    "hardware": HARDWARE,
    "store": STORE,
    "models.NAME": MODEL,
}


def tables() -> Iterator[tuple[str, Keys]]:
    for name, keys in TABLES.items():
        yield name, keys
        yield from (
            (f"{name}.{key}", part) for key, part in keys.items() if isinstance(part, Mapping)
        )


def section(table: str) -> str:
    """Return the text below the heading of a table, up to the next heading."""
    found = re.search(
        rf"^#+ \[{re.escape(table)}\][^\n]*\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/configuration.md has no section [{table}]"
    return found[1]


@pytest.mark.parametrize(("table", "keys"), list(tables()), ids=[table for table, _ in tables()])
def test_section_documents_exactly_the_keys(table: str, keys: Keys) -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section(table), re.MULTILINE)
    assert [key for key, _ in rows] == [k for k, v in keys.items() if not isinstance(v, Mapping)]
    for key, row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) == 4, key
        assert all(cells), key


def test_every_field_has_its_key() -> None:
    said = {
        config.Server: set(SERVER),
        config.HardwareOverrides: set(HARDWARE),
        config.Store: set(STORE),
        config.Model: set(MODEL) | {"name", "context_is_default", "parallel_is_default"},
        config.LlamaCppOptions: set(MODEL["llamacpp"]),  # type: ignore[arg-type]
        config.LmdeployOptions: set(MODEL["lmdeploy"]),  # type: ignore[arg-type]
        Sampling: set(MODEL["sampling"]),
    }
    for struct, keys in said.items():
        assert {FIELDS.get(key, key) for key in keys} == set(struct.__struct_fields__)


def test_defaults_in_the_tables_are_the_defaults_in_the_code() -> None:
    text = TEXT.replace(section("server.tls"), "")  # it has a `listen` of its own
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^`]+)` \|", text, re.MULTILINE))
    assert len(rows) > 10
    lines = {key: f"{key} = {value}" for key, value in rows.items()}
    server = [
        lines[key] for key in ("listen", "auth", "max_body", "responses_keep", "responses_max")
    ]
    model = [lines[key] for key in MODEL if key in lines]
    llamacpp = [f"llamacpp.{lines[key]}" for key in MODEL["llamacpp"] if key in lines]  # type: ignore[union-attr]
    source = 'gguf = "file:/a"'
    text = "\n".join(["[server]", *server, "[models.a]", source, *model, *llamacpp])
    bare = f"[models.a]\n{source}\ncontext = 8192\nparallel = 4"
    path = Path("models.toml")
    assert config.parse(text.encode(), path) == config.parse(bare.encode(), path)


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL))
def test_example_loads(block: str) -> None:
    assert config.parse(block.encode(), Path("models.toml"))


def test_root_file_loads_and_its_commented_model_too() -> None:
    text = (ROOT / "models.toml").read_text()
    assert config.load(ROOT / "models.toml").models
    uncommented = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    assert uncommented != text
    assert len(config.parse(uncommented.encode(), Path("models.toml")).models) > 1


def test_sources_are_documented() -> None:
    for scheme in get_args(Scheme):
        assert f'| `"{scheme}:' in TEXT


def test_shown_problems_are_real() -> None:
    shown = re.search(r"```\n(models\.toml:9: .*?)```", TEXT, re.DOTALL)
    assert shown
    text = "\n" * 7 + '[models.qwen]\ncontxt = 1\ngguf = "file:/a"\n[server]\nmax_body = "32MB"'
    with pytest.raises(config.ConfigProblems) as caught:
        config.parse(text.encode(), Path("models.toml"))
    assert str(caught.value) == shown[1].strip()

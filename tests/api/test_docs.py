"""docs/api.md and the code name the same things."""

from __future__ import annotations

import re
from pathlib import Path

from edged import errors
from edged.api.app import create_app
from edged.api.openai.parameters import REFUSED
from edged.api.openai.responses import schema as responses
from edged.api.openai.schema import ChatRequest, CompletionRequest
from tests.api.conftest import PlayedBox

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
WORDS = set(re.findall(r"`([^`\n]+)`", DOCS))


def section(title: str) -> set[str]:
    """Return the code words below the heading `title`."""
    body = re.split(r"^#+ ", DOCS.partition(title)[2], flags=re.MULTILINE)[0]
    return set(re.findall(r"`([^`\n]+)`", body))


def test_every_parameter_is_documented_where_it_is_honoured() -> None:
    both = section("### Honoured by both")
    chat = section("### `/v1/chat/completions` alone")
    text = section("### `/v1/completions` alone")
    assert set(ChatRequest.__struct_fields__) - both <= chat
    assert set(CompletionRequest.__struct_fields__) - both <= text
    rows = set(re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", DOCS, flags=re.MULTILINE))
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    honoured = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert honoured <= named


def test_every_parameter_of_responses_is_documented() -> None:
    both = section("### Honoured by both")
    here = section("## Responses\n")
    assert responses.HONOURED - both <= here
    refused = DOCS.partition("## Responses\n")[2].partition("Refused by name: ")[2].split("\n")[0]
    honoured_above = {"n", "max_tokens", "logprobs", "response_format"}
    assert set(re.findall(r"`([a-z_]+)`", refused)) == responses.REFUSED.keys() - honoured_above
    assert honoured_above <= here


def test_every_refused_name_is_documented_and_no_other() -> None:
    refused = section("### Refused by name")
    assert set(REFUSED) <= refused
    assert set(REFUSED).isdisjoint(ChatRequest.__struct_fields__)
    lists = DOCS.partition("### Refused by name")[2].partition("## Replies")[0]
    listed = set(re.findall(r"`([a-z_]+)`", lists[lists.index("* OpenAI") :]))
    assert listed - {"image_url", "input_audio", "file"} == set(REFUSED)


def test_every_route_is_documented() -> None:
    table = DOCS.partition("## Endpoints")[2].partition("## Requests")[0]
    documented = set(re.findall(r"^\| `([A-Z]+ [^`]+)` \|", table, flags=re.MULTILINE))
    routes = set()
    for route in create_app(PlayedBox()).routes:
        path = re.sub(r":\w+}", "}", route.path_format)
        routes |= {f"{method} {path}" for method in route.methods - {"OPTIONS", "HEAD"}}
    assert documented == routes


def test_every_error_code_is_documented() -> None:
    def tree(root: type[errors.EdgedError]) -> set[type[errors.EdgedError]]:
        return {root}.union(*map(tree, root.__subclasses__()))

    # What happens outside a request would reach a client as an internal error.
    faults = {kind for kind in tree(errors.EdgedError) if kind.status == 500}
    unread = {errors.ClientGone}
    kinds = tree(errors.EdgedError) - faults - unread | {errors.InternalError}
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", DOCS, flags=re.MULTILINE)
    documented = {
        (int(status), code) for status, codes in rows for code in re.findall("`([^`]+)`", codes)
    }
    assert {(kind.status, kind.code) for kind in kinds} == documented


def test_every_metric_is_documented() -> None:
    box = PlayedBox()
    page = box.metrics.render(box.status()).decode()
    names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE edged_")}
    assert names == {word for word in WORDS if re.fullmatch(r"edged_[a-z_]+", word)}

"""Images and sounds from real clients through a real daemon to models that take them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.api import media_files as files
from tests.clients.conftest import served
from tests.models import UnavailableError, projector, tiny

CONFIG = """
[server]
listen = ["127.0.0.1:{{port}}"]
max_body = "8MiB"

[defaults]
context = {{context}}
parallel = 4

[models.seeing]
gguf = "file:{plain}"
load = "startup"

[models.seeing.llamacpp]
mmproj = "file:{image}"

[models.looking]
gguf = "file:{mrope}"

[models.looking.llamacpp]
mmproj = "file:{image_mrope}"

[models.hearing]
gguf = "file:{plain}"

[models.hearing.llamacpp]
mmproj = "file:{sound}"

[models.reading]
gguf = "file:{plain}"

[models.mistaken]
gguf = "file:{plain}"

[models.mistaken.llamacpp]
mmproj = "file:{plain}"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        config = CONFIG.format(
            plain=tiny("plain"),
            mrope=tiny("mrope"),
            image=projector("image"),
            image_mrope=projector("image-mrope"),
            sound=projector("sound"),
        )
    except UnavailableError as error:
        pytest.skip(str(error))
    with served(tmp_path_factory.mktemp("images"), config) as url:
        yield url


def content(*parts: dict[str, Any]) -> Any:
    text = {"type": "text", "text": "What do you see?"}
    return [{"role": "user", "content": [text, *parts]}]


@pytest.mark.parametrize("model", ["seeing", "looking"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_openai_client_is_answered_about_an_image(
    sdk: openai.OpenAI, model: str, form: str
) -> None:
    part = files.part(files.url(files.image(200, 100, form=form), f"image/{form.lower()}"))
    done = sdk.chat.completions.create(model=model, messages=content(part), max_tokens=8)
    assert done.choices[0].message.content
    assert done.usage
    n = done.usage.prompt_tokens
    plain = sdk.chat.completions.create(model=model, messages=content(), max_tokens=8)
    assert plain.usage
    assert n - plain.usage.prompt_tokens >= 16


def test_same_image_again_is_cached_and_streams(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "looking",
        "messages": content(files.part(files.image(300, 300))),
        "max_tokens": 8,
        "temperature": 0,
    }
    first = sdk.chat.completions.create(**asked)
    assert first.usage
    *pieces, last = sdk.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage
    assert last.usage.prompt_tokens_details
    assert last.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    text = "".join(p.choices[0].delta.content or "" for p in pieces)
    assert text == first.choices[0].message.content


def test_choices_share_the_image(sdk: openai.OpenAI) -> None:
    done = sdk.chat.completions.create(
        model="seeing", messages=content(files.part(files.image())), max_tokens=4, n=3, seed=1
    )
    assert len(done.choices) == 3


def test_anthropic_client_is_answered_about_an_image(daemon: str) -> None:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    data = base64.b64encode(files.image(100, 100)).decode()
    image: Any = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": data},
    }
    messages: Any = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    with anthropic.Anthropic(base_url=daemon, api_key="none", http_client=http) as client:
        done = client.messages.create(model="looking", max_tokens=8, messages=messages)
        assert done.usage.input_tokens + (done.usage.cache_read_input_tokens or 0) > 36
        counted = client.messages.count_tokens(model="looking", messages=messages)
        total = done.usage.input_tokens + (done.usage.cache_read_input_tokens or 0)
        assert counted.input_tokens == total


def test_responses_are_answered_about_an_image(sdk: openai.OpenAI) -> None:
    part: Any = {"type": "input_image", "image_url": files.url(files.image()), "detail": "auto"}
    text: Any = {"type": "input_text", "text": "What is it?"}
    done = sdk.responses.create(
        model="looking", input=[{"role": "user", "content": [text, part]}], max_output_tokens=16
    )
    assert done.output_text


def test_sound_is_answered(sdk: openai.OpenAI) -> None:
    part = files.sound_part(files.sound(1.5, rate=44100, channels=2))
    done = sdk.chat.completions.create(model="hearing", messages=content(part), max_tokens=8)
    assert done.choices[0].message.content
    assert done.usage
    assert done.usage.prompt_tokens > 60


def test_images_and_text_together(sdk: openai.OpenAI) -> None:
    def ask(i: int) -> str | None:
        parts = [files.part(files.image(60 + 16 * i, 60))] if i % 2 else []
        done = sdk.chat.completions.create(
            model="looking", messages=content(*parts), max_tokens=12, temperature=0
        )
        return done.choices[0].finish_reason

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(16))) <= {"stop", "length"}


@pytest.mark.parametrize(
    ("model", "part", "says"),
    [
        ("reading", files.part(files.image()), "mmproj"),
        ("seeing", files.sound_part(files.sound()), "takes no sounds"),
        ("hearing", files.part(files.image()), "takes no images"),
        ("seeing", files.part(files.image()[:-40]), "broken PNG"),
        ("seeing", files.part("https://127.0.0.1/x.png"), "data:"),
        ("looking", files.part(files.image(1024, 1024)), "context"),
    ],
)
def test_what_cannot_be_seen_is_a_400(
    sdk: openai.OpenAI, model: str, part: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        sdk.chat.completions.create(model=model, messages=content(part), max_tokens=4)
    assert caught.value.param
    assert caught.value.param.startswith("messages")


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 599), (31, 17)])
@pytest.mark.parametrize("model", ["seeing", "looking"])
def test_image_of_any_size_is_answered(
    sdk: openai.OpenAI, model: str, size: tuple[int, int]
) -> None:
    part = files.part(files.image(*size))
    assert sdk.chat.completions.create(model=model, messages=content(part), max_tokens=2).choices


def test_models_say_what_they_take(raw: httpx.Client) -> None:
    models = {m["id"]: m["edged"] for m in raw.get("/v1/models").json()["data"]}
    found = {name: each["modalities"] for name, each in models.items()}
    assert found["seeing"] == ["text", "image"]
    assert found["hearing"] == ["text", "audio"]
    assert found["reading"] == ["text"]
    assert "holds no image projector" in models["mistaken"]["error"]


def test_daemon_that_decodes_many_images_stays_small(raw: httpx.Client, sdk: openai.OpenAI) -> None:
    for i in range(12):
        part = files.part(files.image(2000, 1500 + i, form="JPEG"))
        sdk.chat.completions.create(model="seeing", messages=content(part), max_tokens=1)
    pid = raw.get("/status").json()["pid"]
    with open(f"/proc/{pid}/smaps_rollup") as rollup:  # noqa: PTH123
        pss_kb = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    assert pss_kb < 200_000

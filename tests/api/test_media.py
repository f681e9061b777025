"""Images, sounds and files inside messages: what reaches a worker, and what is refused and how."""

import asyncio
import base64
import contextlib
import gc
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.api import fetch, image_file, media, wave_file
from edged.config import Server
from edged.plan import ModelPlan
from edged.protocol import Media, Messages
from tests.api import media_files as files
from tests.api.conftest import PlayedBox

CHAT = "/v1/chat/completions"
URL = "messages[0].content[0].image_url.url"


@pytest.fixture
def box(box: PlayedBox) -> PlayedBox:
    """The first model of the box reads images and sounds, the second text only."""
    plan = box.plan.models["guide"]
    assert plan.launch
    assert plan.launch.llamacpp
    settings = replace(plan.launch.llamacpp, mmproj="/nowhere", media=("image", "audio"))
    seeing: ModelPlan = replace(plan, launch=replace(plan.launch, llamacpp=settings))
    box.plan = replace(box.plan, models=box.plan.models | {"guide": seeing})
    return box


def asks(*parts: dict[str, Any], model: str = "guide", role: str = "user") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": role, "content": list(parts)}]}


async def refusal(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post(CHAT, json=body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def sent(box: PlayedBox) -> Messages:
    prompt = box.asked[-1][1].prompt
    assert isinstance(prompt, Messages)
    return prompt


# ── images ──


@pytest.mark.parametrize("form", image_file.FORMATS)
async def test_image_reaches_the_worker_as_pixels(
    http: httpx.AsyncClient, box: PlayedBox, form: str
) -> None:
    text = {"type": "text", "text": "What is it?"}
    response = await http.post(CHAT, json=asks(text, files.part(files.image(form=form))))
    assert response.status_code == 200
    assert sent(box).messages == [{"role": "user", "content": [text, {"type": "image"}]}]
    (one,) = sent(box).media
    assert (one.kind, one.width, one.height) == ("image", 40, 20)
    left, right = tuple(one.data[:3]), tuple(one.data[-3:])
    near = 30 if form in ("JPEG", "WEBP") else 0
    assert all(abs(a - b) <= near for a, b in zip(left, (255, 0, 0), strict=True))
    assert all(abs(a - b) <= near for a, b in zip(right, (0, 0, 255), strict=True))


async def test_openai_client_sends_an_image(port: int, box: PlayedBox) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as client:
        done = await client.chat.completions.create(
            model="guide",
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is it?"},
                        {
                            "type": "image_url",
                            "image_url": {"url": files.url(files.image()), "detail": "high"},
                        },
                    ],
                }
            ],
        )
    assert done.choices[0].finish_reason == "stop"
    assert len(sent(box).media) == 1


def test_orientation_of_a_photo_is_applied() -> None:
    exif = image_file.Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    found = image_file.decode(files.image(form="JPEG", exif=exif.tobytes()))
    assert (found.width, found.height) == (20, 40)
    assert found.data[0] > 200  # red is above
    assert found.data[-1] > 200  # blue below


def test_transparent_image_stands_on_white() -> None:
    clear = image_file.Image.new("RGBA", (3, 3), (10, 20, 30, 0))
    buffer = files.io.BytesIO()
    clear.save(buffer, "PNG")
    assert image_file.decode(buffer.getvalue()).data == b"\xff" * 27


@pytest.mark.parametrize(
    ("mode", "form", "colour", "expected"),
    [
        ("L", "JPEG", 200, (200, 200, 200)),
        ("CMYK", "JPEG", (0, 255, 255, 0), (255, 0, 0)),
        ("1", "PNG", 1, (255, 255, 255)),
        ("LA", "PNG", (0, 0), (255, 255, 255)),
        ("I;16", "PNG", 40_000, (156, 156, 156)),
        ("P", "GIF", 0, (0, 0, 0)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(
    mode: str, form: str, colour: Any, expected: tuple[int, ...]
) -> None:
    buffer = files.io.BytesIO()
    image_file.Image.new(mode, (16, 16), colour).save(buffer, form)
    found = image_file.decode(buffer.getvalue())
    assert len(found.data) == 16 * 16 * 3
    assert all(abs(a - b) <= 2 for a, b in zip(found.data[:3], expected, strict=True))


@given(
    form=st.sampled_from(image_file.FORMATS),
    cut=st.integers(0, 400),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_broken_file_is_an_image_or_unreadable_and_nothing_else(
    form: str, cut: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SMALL[form])
    for at, value in changes:
        data[at % len(data)] = value
    with contextlib.suppress(media.Unreadable):
        found = image_file.decode(bytes(data[: len(data) - cut % len(data)]))
        assert len(found.data) == found.width * found.height * 3 > 0


SMALL = {form: files.image(9, 7, form=form) for form in image_file.FORMATS}


@given(st.binary(max_size=200), st.integers(0, 44), st.binary(max_size=8))
@settings(max_examples=200, deadline=None)
def test_broken_sound_is_a_sound_or_unreadable_and_nothing_else(
    noise: bytes, at: int, change: bytes
) -> None:
    data = bytearray(files.sound(0.05))
    data[at : at + len(change)] = change
    for each in (bytes(data), b"RIFF" + noise):
        with contextlib.suppress(media.Unreadable):
            found = wave_file.decode(each, "wav")
            assert len(found.data) % (found.channels * found.sample_bytes) == 0


def test_large_image_is_made_smaller_and_a_small_one_asked_for_smaller_still() -> None:
    data = files.image(3000, 2000)
    found = image_file.decode(data)
    assert found.width * found.height <= image_file.LARGEST_PIXELS
    assert found.width / found.height == pytest.approx(1.5, rel=0.01)
    assert len(found.data) == found.width * found.height * 3
    low = image_file.decode(data, small=True)
    assert (low.width, low.height) == (512, 341)


async def test_detail_low_makes_the_image_small(http: httpx.AsyncClient, box: PlayedBox) -> None:
    part = files.part(files.image(1000, 500), detail="low")
    assert (await http.post(CHAT, json=asks(part))).status_code == 200
    assert (sent(box).media[0].width, sent(box).media[0].height) == (512, 256)


whole = files.image(300, 200)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (files.url(whole[: len(whole) // 2]), "broken PNG"),
        (files.url(files.image(300, 200, form="JPEG")[:-300]), "broken JPEG"),
        (files.url(files.png_of(30_000, 30_000)), "25 million"),
        (files.url(files.png_of(0, 0)), "no image that can be read"),
        (files.url(files.png_of(64, 64)), "broken PNG"),
        (files.url(files.image(1000, 4)), "200 times"),
        (files.url(SVG, "image/svg+xml"), "no image that can be read"),
        (files.url(files.image(form="TIFF"), "image/tiff"), "no image that can be read"),
        (files.url(b"", "image/png"), "no image that can be read"),
        (files.url(files.image(), "text/html"), "must be an image"),
        ("data:image/png;base64,ab!cd", "not base64"),
        ("data:image/png;base64,äöü", "not base64"),
        ("data:image/png,abcd", "base64"),
        ("data:", "base64"),
        ("", "must be a `data:` URL"),
        ("file:///etc/passwd", "must be a `data:` URL"),
        ("http://127.0.0.1/x.png", "must be a `data:` URL"),
        ("https://images.example.org/x.png", "media_hosts"),
    ],
)
async def test_bad_image_is_refused(
    http: httpx.AsyncClient, box: PlayedBox, url: str, says: str
) -> None:
    error = await refusal(http, asks(files.part(url)))
    assert error["param"] == URL
    assert says in error["message"]
    assert box.asked == []


async def test_too_many_images_are_refused(http: httpx.AsyncClient, box: PlayedBox) -> None:
    error = await refusal(http, asks(*[files.part(files.image())] * 100))
    assert error["param"] == f"messages[0].content[{media.MOST}].image_url.url"
    assert box.asked == []


async def test_too_many_pixels_are_refused(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MOST_BYTES", 3 * 40 * 20 * 3)
    parts = [files.part(files.image())] * 3
    assert (await http.post(CHAT, json=asks(*parts))).status_code == 200
    error = await refusal(http, asks(*parts, files.part(files.image())))
    assert error["param"] == "messages[0].content[3].image_url.url"
    error = await refusal(http, asks(*parts) | {"n": 2})
    assert "2 choices" in error["message"]


async def test_images_of_all_requests_have_a_limit(
    http: httpx.AsyncClient, box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    media._check_held()
    before = sum(len(one.data) for ref in media._held if (one := ref()))
    monkeypatch.setattr(media, "MOST_HELD_BYTES", before + 2 * 40 * 20 * 3)
    body = asks(files.part(files.image()))
    assert [(await http.post(CHAT, json=body)).status_code for _ in range(3)] == [200, 200, 429]
    assert "retry-after" in (await http.post(CHAT, json=body)).headers
    box.asked.clear()  # as when those requests are over
    gc.collect()
    assert (await http.post(CHAT, json=body)).status_code == 200


@pytest.mark.parametrize(
    ("image_url", "param"),
    [
        ({}, "messages[0].content[0].image_url.url"),
        ({"url": 1}, "messages[0].content[0].image_url.url"),
        ({"url": "data:,", "detail": "huge"}, "messages[0].content[0].image_url.detail"),
        ("https://x", "messages[0].content[0].image_url"),
    ],
)
async def test_malformed_part_is_refused(
    http: httpx.AsyncClient, image_url: Any, param: str
) -> None:
    error = await refusal(http, asks({"type": "image_url", "image_url": image_url}))
    assert error["param"] == param


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
async def test_image_outside_a_users_message_is_refused(http: httpx.AsyncClient, role: str) -> None:
    error = await refusal(http, asks(files.part(files.image()), role=role))
    assert (error["param"], error["code"]) == ("messages[0].content[0]", "unsupported_parameter")


@pytest.mark.parametrize("part", [files.part(files.image()), files.sound_part(files.sound())])
async def test_text_model_refuses_media_before_it_is_asked(
    http: httpx.AsyncClient, box: PlayedBox, part: dict[str, Any]
) -> None:
    error = await refusal(http, asks(part, model="Qwen/Qwen3-8B"))
    assert error["code"] == "unsupported_parameter"
    assert error["param"].startswith("messages[0].content[0].")
    assert "mmproj" in error["message"]
    assert box.asked == []


async def test_models_tell_what_they_take(http: httpx.AsyncClient) -> None:
    models = (await http.get("/v1/models")).json()["data"]
    found = {each["id"]: each["edged"]["modalities"] for each in models}
    assert found["guide"] == ["text", "image", "audio"]
    assert found["Qwen/Qwen3-8B"] == ["text"]


# ── sounds and files ──


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 2), (3, 1), (4, 2)])
async def test_sound_reaches_the_worker_as_samples(
    http: httpx.AsyncClient, box: PlayedBox, width: int, channels: int
) -> None:
    data = files.sound(0.5, width=width, channels=channels)
    assert (await http.post(CHAT, json=asks(files.sound_part(data)))).status_code == 200
    assert sent(box).messages[0]["content"] == [{"type": "audio"}]
    samples = data[44:]
    assert sent(box).media == [
        Media("audio", samples, rate=16000, channels=channels, sample_bytes=width)
    ]


@pytest.mark.parametrize(
    ("data", "form", "says"),
    [
        (files.sound(), "mp3", "WAV"),
        (b"ID3" + bytes(100), "wav", "WAV"),
        (files.sound()[:30], "wav", "WAV"),
        (files.sound(0), "wav", "without samples"),
        (files.sound(0.5, rate=1000), "wav", "1000 samples a second"),
        (files.sound(601, rate=4000, width=1), "wav", "at most 600 s"),
    ],
)
async def test_bad_sound_is_refused(
    http: httpx.AsyncClient, box: PlayedBox, data: bytes, form: str, says: str
) -> None:
    error = await refusal(http, asks(files.sound_part(data, form)))
    assert error["param"] == "messages[0].content[0].input_audio.data"
    assert says in error["message"]
    assert box.asked == []


async def test_text_file_is_read_as_text(http: httpx.AsyncClient, box: PlayedBox) -> None:
    data = base64.b64encode("größe".encode()).decode()
    file = {"file_data": f"data:text/csv;base64,{data}", "filename": "a.csv"}
    response = await http.post(CHAT, json=asks({"type": "file", "file": file}))
    assert response.status_code == 200
    content = '<file name="a.csv">\ngröße\n</file>'
    assert sent(box).messages == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("file", "param"),
    [
        ({"file_data": "data:application/pdf;base64,JVBERg=="}, ".file_data"),
        ({"file_data": "data:text/plain;base64,/w=="}, ".file_data"),
        ({"file_id": "file-1"}, ""),
        ({}, ""),
    ],
)
async def test_other_file_is_refused(
    http: httpx.AsyncClient, file: dict[str, str], param: str
) -> None:
    error = await refusal(http, asks({"type": "file", "file": file}))
    assert error["param"] == f"messages[0].content[0].file{param}"


# ── fetching ──


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.20.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("2001:0:a00:1::", False),
        ("fd00::1", False),
        ("fe80::1%lo", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:
    assert fetch.is_public(address) is public


@pytest.fixture
def fetching(box: PlayedBox) -> PlayedBox:
    config = replace(box.plan.config, server=Server(media_hosts=("images.example.org",)))
    box.plan = replace(box.plan, config=config)
    return box


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://other.example.org/x.png", "does not name"),
        ("https://images.example.org.evil.example/x.png", "does not name"),
        ("https://user@images.example.org/x.png", "no user"),
        ("https://images.example.org:8443/x.png", "no port"),
        ("https://images.example.org:x/", "not a valid URL"),
        ("http://images.example.org/x.png", "`https:`"),
    ],
)
async def test_url_that_may_not_be_fetched_is_refused(
    http: httpx.AsyncClient, fetching: PlayedBox, url: str, says: str
) -> None:
    error = await refusal(http, asks(files.part(url)))
    assert error["param"] == URL
    assert says in error["message"]
    assert fetching.asked == []


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]])
async def test_name_of_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    async def look_up(_host: str) -> list[str]:
        return addresses

    monkeypatch.setattr(fetch, "_look_up", look_up)
    with pytest.raises(fetch.NotFetched, match="not a public one"):
        await fetch.get("https://a.example/x", hosts=("a.example",), most_bytes=1000)


async def test_name_is_really_looked_up() -> None:
    with pytest.raises(fetch.NotFetched, match=r"127\.0\.0\.1|::1"):
        await fetch.get("https://localhost/x", hosts=("localhost",), most_bytes=1000)


ANSWERS = {
    "/image.png?a=b": (200, files.image()),
    "/moved": (302, b""),
    "/gone": (404, b""),
    "/large": (200, bytes(5000)),
}


@pytest.fixture
async def web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetching: PlayedBox
) -> AsyncIterator[list[str]]:
    """A web server with a certificate for images.example.org; yields the heads that it read."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=images.example.org"]
    command += ["-addext", "subjectAltName=DNS:images.example.org"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: ASYNC221 - a moment
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        status, content = ANSWERS[heads[-1].split()[1]]
        more = "location: https://127.0.0.1/\r\n" if status == 302 else ""
        head = f"HTTP/1.1 {status} X\r\n{more}content-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(fetch, "_PORT", server.sockets[0].getsockname()[1])
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")

    async def look_up(_host: str) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(fetch, "_look_up", look_up)
    config = replace(fetching.plan.config.server, max_body_bytes=4096)
    fetching.plan = replace(fetching.plan, config=replace(fetching.plan.config, server=config))
    yield heads
    server.close()


async def test_image_is_fetched_from_an_allowed_host(
    http: httpx.AsyncClient, fetching: PlayedBox, web: list[str]
) -> None:
    url = "https://images.example.org/image.png?a=b"
    assert (await http.post(CHAT, json=asks(files.part(url)))).status_code == 200
    assert sent(fetching).media[0].width == 40
    assert "host: images.example.org\r\n" in web[0].lower()


@pytest.mark.parametrize(
    ("path", "says"), [("/moved", "redirect"), ("/gone", "404"), ("/large", "4,096 bytes")]
)
async def test_fetch_that_fails_is_refused(
    http: httpx.AsyncClient, web: list[str], path: str, says: str
) -> None:
    error = await refusal(http, asks(files.part(f"https://images.example.org{path}")))
    assert error["param"] == URL
    assert says in error["message"]
    assert len(web) == 1  # a redirect was not followed


async def test_wrong_certificate_is_refused(web: list[str]) -> None:
    with pytest.raises(fetch.NotFetched, match="certificate"):
        await fetch.get("https://a.example/image.png", hosts=("a.example",), most_bytes=9999)
    assert not web

import pytest

from edged.redaction import for_strangers, without_secrets

LOOKS = [
    ("the key sk-edged-0123456789abcdef-_x.", "0123456789"),
    ("hf_ABCDEFGHIJKLMNOP", "ABCDEFGHIJ"),
    ("https://user:pass@host/x", "pass"),
    ("https://only-a-token@host/x", "only-a-token"),
    ("https://host/a.gguf?x=1&X-Amz-Signature=abc123#sha256=f", "abc123"),
    ("https://host/a.gguf?access_token=abc123", "abc123"),
    ("-----BEGIN EC PRIVATE KEY-----\nMIG\n-----END EC PRIVATE KEY-----", "MIG"),
    ("-----BEGIN PRIVATE KEY-----\nMIG cut off", "MIG"),
]
NAMES = [
    ('api_key = "abc123"', "abc123"),
    ('{"hf_token": "abc123"}', "abc123"),
    ("Authorization: Bearer abc.def", "abc.def"),
    (f'sha256 = "{"a" * 64}"', "a" * 64),
]


@pytest.mark.parametrize(("text", "gone"), LOOKS)
def test_secret_by_its_looks_is_shown_to_nobody(text: str, gone: str) -> None:
    for hide in (without_secrets, for_strangers):
        assert gone not in hide(f"before {text} after")
        assert hide(f"before {text}").startswith("before ")


@pytest.mark.parametrize(("text", "gone"), NAMES)
def test_secret_by_its_name_does_not_leave_the_box(text: str, gone: str) -> None:
    assert gone not in for_strangers(f"before {text} after")
    assert for_strangers(f"before {text} after").endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "models.toml:3: gguf = file:/a",
        "request.done path=/v1/models prompt_tokens=3 key=admin request_id=req-0123456789abcdef01",
        'give edged a token: [store] hf_token = "file:/PATH"',
        "a task-0123456789abcdef0123 and a risk-0123456789abcdef0123",
        "http://127.0.0.1:8000/v1?key&other=1",
        "sk-learn is no key",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text

"""llama-cpp-python's own server with an engine that costs nothing: ``null_peer.py PORT MODEL``.

Everything but the model is its code as it ships: routes, validation, thread pool, event stream.
"""

import itertools
import sys
from typing import Any

import llama_cpp
import uvicorn
from llama_cpp.server import app, model
from llama_cpp.server.settings import ModelSettings, ServerSettings

_ABOUT = {"id": "chatcmpl-null", "created": 0, "model": "bench"}


def _chat(_llama: Any, *, max_tokens: int = 1, stream: bool = False, **_rest: Any) -> Any:
    if not stream:
        message = {"role": "assistant", "content": " token" * max_tokens}
        return _ABOUT | {
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
            ],
            "usage": {
                "prompt_tokens": 1,
                "completion_tokens": max_tokens,
                "total_tokens": max_tokens + 1,
            },
        }
    last: list[dict[str, Any]] = [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    pieces = (
        [{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}]
        for _ in range(max_tokens)
    )
    return (
        _ABOUT | {"object": "chat.completion.chunk", "choices": choices}
        for choices in itertools.chain(pieces, [last])
    )


def main() -> None:
    """Serve until a signal."""
    llama_cpp.Llama.create_chat_completion = _chat
    null = object.__new__(type("NullLlama", (llama_cpp.Llama,), {"__del__": lambda _: None}))
    model.LlamaProxy.load_llama_from_model_settings = staticmethod(lambda _settings: null)
    application = app.create_app(
        server_settings=ServerSettings(interrupt_requests=False),
        model_settings=[ModelSettings(model=sys.argv[2], model_alias="bench")],
    )
    uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()

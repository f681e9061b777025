"""HTTP for model files: patient with servers that stumble, plain words for those that refuse."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import httpx
import msgspec

from edged import __version__
from edged.doubling import Doubling
from edged.errors import StoreError, Unreachable

_T = TypeVar("_T")

TRIES = 6  # in a row without a byte of progress
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_LONGEST_ASKED_WAIT_S = 300.0  # that a server may ask for with Retry-After
_STALL_S = 30.0
_CONNECT_S = 15.0
_MOST_JSON_BYTES = 64 << 20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Patience:
    """How long to go on with a server that fails: waits double, a byte of progress resets them."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._failed = 0
        self._waits = Doubling(_FIRST_WAIT_S, _LONGEST_WAIT_S)

    def progress(self) -> None:
        """Take note that something arrived."""
        self._failed = 0
        self._waits.reset()

    def after(self, error: Unreachable) -> None:
        """Wait before the next try; raises `error` when there were enough of them."""
        self._failed += 1
        if self._failed >= TRIES:
            raise error
        self._sleep(max(self._waits.next_s(), min(error.retry_after_s or 0, _LONGEST_ASKED_WAIT_S)))


class Web:
    """A client for one pull. `sleep`: how it waits between tries."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self.sleep = sleep
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(_STALL_S, connect=_CONNECT_S),
            # identity: ranges and digests are of the file, not of a compressed form of it
            headers={"user-agent": f"edged/{__version__}", "accept-encoding": "identity"},
        )

    def close(self) -> None:
        """Let connections go."""
        self._client.close()

    def json(
        self,
        url: str,
        kind: type[_T],
        *,
        headers: Mapping[str, str] | None = None,
        refuse: Callable[[httpx.Response], StoreError] | None = None,
    ) -> tuple[_T, httpx.Response]:
        """Return the JSON at `url` as `kind`, and the response it came with.

        `refuse` words an answer that is an error. Raises StoreError, Unreachable when all tries
        failed.
        """
        patience = Patience(self.sleep)
        while True:
            try:
                with self.stream(url, headers, refuse=refuse) as response:
                    body = bytearray()
                    for piece in response.iter_raw():
                        body += piece
                        if len(body) > _MOST_JSON_BYTES:
                            raise StoreError(f"{url} answers with more than 64 MiB of JSON")
                return msgspec.json.decode(body, type=kind), response
            except Unreachable as error:
                patience.after(error)
            except msgspec.MsgspecError as error:
                raise StoreError(
                    f"{url} does not answer as a hub does ({error}); is HF_ENDPOINT right?"
                ) from None

    @contextlib.contextmanager
    def stream(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        refuse: Callable[[httpx.Response], StoreError] | None = None,
    ) -> Iterator[httpx.Response]:
        """Give the answer to one GET, its body not read yet.

        Raises Unreachable for what may be better in a moment (also while the body is read), and
        StoreError for what will not.
        """
        host = httpx.URL(url).host
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code in _AGAIN:
                    raise Unreachable(
                        f"{host} answers {response.status_code} {response.reason_phrase}",
                        retry_after_s=_retry_after(response),
                    )
                if response.is_error:
                    raise refuse(response) if refuse else _refused(response)
                yield response
        except httpx.TransportError as error:
            said = str(error) or type(error).__name__
            raise Unreachable(f"{host} cannot be reached or broke off: {said}") from None
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise StoreError(f"{url} cannot be fetched: {error}") from None


def _refused(response: httpx.Response) -> StoreError:
    return StoreError(f"{response.url.host} answers {response.status_code} for {response.url}")


def _retry_after(response: httpx.Response) -> int | None:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() else None

"""Clients on the other side of the wire: the SDK that users have, and a load that counts."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter

import httpx
import openai

from tests.appliance.machine import GUEST_IP, PATIENCE_S

URL = f"http://{GUEST_IP}:8000"
HTTPS_URL = f"https://{GUEST_IP}:8443"
MODEL = "edge-guide"


def ask(key: str, url: str = URL, client: httpx.Client | None = None) -> str:
    """Ask as a user does, with OpenAI's SDK, from the other side of the wire."""
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S, http_client=client
    ) as sdk:
        answer = sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is edged?"}], max_tokens=16
        )
    return answer.choices[0].message.content or ""


def status_of(key: str, path: str = "/v1/models", trust: ssl.SSLContext | None = None) -> int:
    """Ask once on a new connection, with TLS where somebody is trusted for it."""
    url = (HTTPS_URL if trust else URL) + path
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(verify=trust or True, timeout=PATIENCE_S, trust_env=False) as client:
        return client.get(url, headers=headers).status_code


class Load(threading.Thread):
    """Asks without a pause until it is ended; `seen` counts what came back."""

    def __init__(self, key: str, trust: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self._key = key
        self._trust = trust
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                # a new connection each time: one that is refused must be noticed
                self.seen[str(status_of(self._key, trust=self._trust))] += 1
            except httpx.HTTPError as error:
                self.seen[type(error).__name__] += 1

    def until(self, number: int) -> None:
        """Wait until so many more answers have come."""
        wanted, end = self.seen.total() + number, time.monotonic() + PATIENCE_S
        while self.seen.total() < wanted:
            assert time.monotonic() < end, self.seen
            time.sleep(0.02)

    def end(self) -> Counter[str]:
        self._over.set()
        self.join(PATIENCE_S)
        return self.seen

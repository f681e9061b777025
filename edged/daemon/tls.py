"""The certificate that clients are shown: which files, loaded anew while connections go on."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

from edged.config import Tls
from edged.daemon import certificates
from edged.daemon.listeners import ListenError
from edged.daemon.watch import Fingerprint, fingerprint
from edged.log import get_logger

_LOOK_S = 10.0  # at the files
_RENEW_S = 3600.0  # and at the clock, and this box's addresses

log = get_logger()


class Certificate:
    """One TLS context for the life of the daemon; new handshakes get what was loaded last.

    Written by the daemon's reload and by `keep_fresh`, both in the loop.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the box's own CA
        self.context = _context()
        self.is_loaded = False
        self._tls = Tls()
        self._seen: tuple[Fingerprint, Fingerprint] | None = None
        self._renewed_s = 0.0

    @property
    def ca(self) -> bytes | None:
        """What clients need to trust this box, PEM; None where it is not its own CA."""
        if self._tls.mode != "self-signed":
            return None
        return (self.folder / "ca.crt").read_bytes()

    async def use(self, tls: Tls) -> None:
        """Bring these settings into force; raises ListenError, and then the old ones stay."""
        if tls.mode != "off":
            await asyncio.to_thread(self._load, tls)
        self._tls = tls
        self.is_loaded = tls.mode != "off"

    async def keep_fresh(self) -> None:
        """Renew the leaf, and load files that were replaced. Never ends."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Load what has changed; a pair that cannot be used is logged, and the old one stays."""
        if not self.is_loaded:
            return
        is_due = time.monotonic() - self._renewed_s > _RENEW_S
        if self._tls.mode == "self-signed" and not is_due and self._files() == self._seen:
            return
        if self._tls.mode == "files" and self._files() == self._seen:
            return
        try:
            await asyncio.to_thread(self._load, self._tls)
        except ListenError as error:
            self._seen = self._files()  # said once for each change
            log.error("tls.kept", problem=str(error))  # noqa: TRY400 - it says all

    def _files(self) -> tuple[Fingerprint, Fingerprint]:
        cert, key = self._paths(self._tls)
        return fingerprint(cert), fingerprint(key)

    def _paths(self, tls: Tls) -> tuple[Path, Path]:
        if tls.mode == "files":
            return Path(tls.cert or ""), Path(tls.key or "")
        return self.folder / "leaf.crt", self.folder / "leaf.key"

    def _load(self, tls: Tls) -> None:
        try:
            if tls.mode == "self-signed":
                certificates.ensure(self.folder, certificates.names(), time.time())
                self._renewed_s = time.monotonic()
            cert, key = self._paths(tls)
            seen = (fingerprint(cert), fingerprint(key))
            if seen == self._seen:
                return
            for each in (cert, key):
                each.stat()  # OpenSSL does not say which one is missing
            _context().load_cert_chain(cert, key)  # a pair that does not fit must not get in
            self.context.load_cert_chain(cert, key)
            found = certificates.read(cert)
        except FileNotFoundError as error:
            raise ListenError(f"TLS: {error.filename or 'a file'} does not exist") from error
        except ssl.SSLError as error:
            reason = error.reason or error
            raise ListenError(
                f"TLS: {cert} and {key} cannot be used together ({reason}): the first must be a "
                "PEM with the leaf first, the second its unencrypted PEM key"
            ) from error
        except PermissionError as error:
            raise ListenError(
                f"TLS: {error.filename or self.folder} cannot be read by this daemon's user"
            ) from error
        except (OSError, ValueError) as error:
            raise ListenError(f"TLS: {error}") from error
        self._seen = seen
        ends = time.strftime("%Y-%m-%d", time.gmtime(found.ends))
        log.info("tls.loaded", cert=str(cert), ends=ends, names=list(found.names))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context

"""A source → the exact files on its server: revision, names, sizes, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import httpx
from msgspec import Struct

from edged.config import Source, Store, hub_spec
from edged.errors import StoreError, Unreachable
from edged.store import selection
from edged.store.listing import HUBS, RemoteFile
from edged.store.lock import Form, Role
from edged.store.selection import Candidate
from edged.store.source import is_offline
from edged.store.web import Patience, Web

AUTO = "auto"
_SHORT_REVISION = 12

Pick = Callable[[list[Candidate], dict[str, str]], tuple[Candidate, str]]


class Resolution(Struct, frozen=True):
    """What a source means at this moment. `folder` is where it goes, in the store."""

    source: Source
    form: Form
    revision: str
    folder: str
    files: tuple[tuple[RemoteFile, Role], ...]
    headers: dict[str, str]
    chosen: str | None = None
    why: str | None = None
    licence: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files, as far as it is known."""
        return sum(file.bytes or 0 for file, _ in self.files)


def resolve_remote(web: Web, source: Source, form: Form, store: Store, pick: Pick) -> Resolution:
    """Ask the server; `pick` chooses among the candidates of `:auto`. Raises StoreError."""
    if is_offline(store):
        raise StoreError(
            f"{source} is not on this box, and edged is offline ([store] offline, or "
            "HF_HUB_OFFLINE): fetch it on another box and bring it with `edged export` and "
            "`edged import`"
        )
    if source.scheme == "https":
        return _url(web, source, form)
    return _hub(web, source, form, store, pick)


def _hub(web: Web, source: Source, form: Form, store: Store, pick: Pick) -> Resolution:
    spec = hub_spec(source)
    list_files, headers_of = HUBS[source.scheme]
    wanted = selection.GGUF if form == "gguf" else selection.SAFETENSORS
    listing = list_files(web, spec.repository, spec.revision, wanted, store)
    headers = headers_of(store)
    chosen = why = None
    files: list[tuple[RemoteFile, Role]]
    if form == "gguf":
        found = selection.candidates(listing.files)
        if spec.choice == AUTO and found:
            one, why = pick(found, headers)
        else:
            one = selection.choose(found, spec.choice, spec.repository)
        chosen = one.tag
        files = [(file, "model") for file in one.files]
        if (beside := selection.projector(listing.files, one)) is not None:
            files.append((beside, "mmproj"))
        files += [(file, "licence") for file in selection.licences(listing.files)]
    else:
        if spec.choice is not None:
            raise StoreError(f"{source}: safetensors have no quantisation to choose; remove it")
        whole = selection.whole_model(listing.files, spec.repository)
        files = [(f, "licence" if f in selection.licences(whole) else "model") for f in whole]
    return Resolution(
        source=source,
        form=form,
        revision=listing.revision,
        folder=f"{source.scheme}/{spec.repository}/{listing.revision[:_SHORT_REVISION]}",
        files=tuple(files),
        headers=headers,
        chosen=chosen,
        why=why,
        licence=listing.licence,
    )


def _url(web: Web, source: Source, form: Form) -> Resolution:
    if form == "safetensors":
        raise StoreError(f"{source}: safetensors are many files; name a repository of a hub")
    url = urlsplit(str(source))
    name = unquote(url.path.rpartition("/")[2]).replace("/", "_")
    if not name.lower().endswith(".gguf"):
        raise StoreError(f"{source} does not end in .gguf; name the file itself")
    address = str(source).partition("#")[0]
    patience = Patience(web.sleep)
    while True:
        try:
            with web.stream(address) as response:
                size = response.headers.get("content-length", "")
                revision = response.headers.get("etag") or response.headers.get("last-modified", "")
            break
        except Unreachable as error:
            patience.after(error)
    file = RemoteFile(
        path=name,
        bytes=int(size) if size.isascii() and size.isdigit() else None,
        url=address,
        sha256=url.fragment.partition("=")[2].lower() or None,
    )
    # what an address serves may change: each content has a folder of its own
    key = hashlib.sha256(f"{address} {revision} {size}".encode()).hexdigest()[:_SHORT_REVISION]
    host = httpx.URL(address).host
    return Resolution(source, form, revision, f"https/{host}/{key}", ((file, "model"),), {})

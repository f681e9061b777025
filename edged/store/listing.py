"""What a hub holds: repositories of Hugging Face and ModelScope as lists of files.

A list may be long: pages are read one after another, and only files that a model can need are kept.

API of Hugging Face: https://huggingface.co/docs/hub/api; of ModelScope: modelscope/hub/api.py.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
from msgspec import Struct, field

from edged.config import Secret, Store
from edged.errors import StoreError
from edged.store.web import Web

_HF = "https://huggingface.co"
_MS = "https://www.modelscope.cn"
_MOST_PAGES = 1000


class RemoteFile(Struct, frozen=True):
    """One file on a server. Digests are hexadecimal; None: the server does not tell."""

    path: str  # in the repository
    bytes: int | None
    url: str
    sha256: str | None = None
    git_sha1: str | None = None  # of small files: git's name for the content


class Listing(Struct, frozen=True):
    """A repository at one moment. `revision` names exactly this content."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]
    licence: str | None = None


Hub = Callable[[Web, str, str | None, tuple[str, ...], Store], Listing]


# ── Hugging Face ──


class _Info(Struct):
    sha: str
    tags: list[str] = []


class _Lfs(Struct):
    oid: str
    size: int


class _Entry(Struct):
    type: str
    path: str
    oid: str = ""
    size: int = 0
    lfs: _Lfs | None = None


def hugging_face(
    web: Web, repository: str, revision: str | None, wanted: tuple[str, ...], store: Store
) -> Listing:
    """List the files whose names match one of `wanted`; raises StoreError with what to do."""
    base = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HF
    headers = hf_headers(store)

    def refuse(response: httpx.Response) -> StoreError:
        return StoreError(_hf_refusal(response, base, repository, revision, bool(headers)))

    at = quote(revision or "main", safe="")
    info, _ = web.json(
        f"{base}/api/models/{repository}/revision/{at}", _Info, headers=headers, refuse=refuse
    )
    files: list[RemoteFile] = []
    page = f"{base}/api/models/{repository}/tree/{info.sha}?recursive=true&expand=false"
    for _ in range(_MOST_PAGES):
        entries, response = web.json(page, list[_Entry], headers=headers, refuse=refuse)
        files += (
            RemoteFile(
                path=entry.path,
                bytes=entry.lfs.size if entry.lfs else entry.size,
                url=f"{base}/{repository}/resolve/{info.sha}/{quote(entry.path)}",
                sha256=entry.lfs.oid.removeprefix("sha256:") if entry.lfs else None,
                git_sha1=None if entry.lfs else entry.oid or None,
            )
            for entry in entries
            if entry.type == "file" and _matches(entry.path, wanted)
        )
        following = response.links.get("next", {}).get("url")
        if not following:
            break
        page = _next(page, following)
    licence = next((t.partition(":")[2] for t in info.tags if t.startswith("license:")), None)
    return Listing(repository, info.sha, tuple(files), licence)


def _next(page: str, following: str) -> str:
    """Return the address of the next page, on the host of this one.

    Mirrors hand on the links of the hub that they mirror; the token is not for another host.
    """
    url = httpx.URL(page)
    return str(url.join(httpx.URL(following).raw_path.decode()))


def hf_headers(store: Store) -> dict[str, str]:
    """Return the headers that carry the token, if there is one."""
    token = _secret(store.hf_token) or os.environ.get("HF_TOKEN", "").strip() or _token_file()
    return {"authorization": f"Bearer {token}"} if token else {}


def _token_file() -> str:
    environment = os.environ
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    path = environment.get("HF_TOKEN_PATH") or f"{home}/token"
    try:
        return Path(path).expanduser().read_text().strip()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return ""


def _hf_refusal(
    response: httpx.Response, base: str, repository: str, revision: str | None, has_token: bool
) -> str:
    code = response.headers.get("x-error-code", "")
    where = f"{base}/{repository}"
    give = 'give edged a token: [store] hf_token = "file:/PATH", or HF_TOKEN in its environment'
    if code == "GatedRepo":
        if has_token:
            return (
                f"{repository} is gated, and this token may not read it: ask for access at {where}"
            )
        return f"{repository} is gated: accept its terms at {where}, then {give}"
    if code == "RevisionNotFound":
        return f"{repository} has no revision {revision or 'main'!r}: see {where}/commits"
    if code == "RepoNotFound" or response.status_code in (401, 404):
        hint = "this token may not read it" if has_token else f"if it is private, {give}"
        return f"{response.url.host} has no repository {repository}; {hint}"
    said = response.headers.get("x-error-message", "")
    return f"{response.url.host} answers {response.status_code} for {repository}" + (
        f": {said[:200]}" if said else ""
    )


# ── ModelScope ──


class _MsFile(Struct, rename="pascal"):
    path: str
    type: str = "blob"
    size: int = 0
    sha256: str = field(default="", name="Sha256")
    revision: str = ""


class _MsFiles(Struct, rename="pascal"):
    files: list[_MsFile] = []


class _MsAnswer(Struct, rename="pascal"):
    code: int = 200
    message: str = ""
    data: _MsFiles | None = None


def modelscope(
    web: Web, repository: str, revision: str | None, wanted: tuple[str, ...], store: Store
) -> Listing:
    """List as `hugging_face` does; ModelScope names a commit for each file, not for the whole."""
    base = _ms_base()
    headers = ms_headers(store)
    at = revision or "master"

    def refuse(response: httpx.Response) -> StoreError:
        if response.status_code in (401, 403):
            return StoreError(
                f"{repository} may not be read: accept its terms at {base}/models/{repository}, "
                'and give edged a token: [store] ms_token = "file:/PATH", or MODELSCOPE_API_TOKEN'
            )
        return StoreError(
            f"{response.url.host} has no repository {repository} with a revision {at!r}, "
            "or it is private"
        )

    url = f"{base}/api/v1/models/{repository}/repo/files?Revision={quote(at)}&Recursive=True"
    answer, response = web.json(url, _MsAnswer, headers=headers, refuse=refuse)
    if answer.data is None:
        raise StoreError(
            f"{response.url.host} does not list {repository}@{at}: {answer.message[:200]}"
        )
    files = tuple(
        RemoteFile(
            path=each.path,
            bytes=each.size,
            url=f"{base}/api/v1/models/{repository}/repo"
            f"?Revision={quote(each.revision or at)}&FilePath={quote(each.path, safe='')}",
            sha256=each.sha256 or None,
        )
        for each in answer.data.files
        if each.type != "tree" and _matches(each.path, wanted)
    )
    commits = {each.path: each.revision for each in answer.data.files if each.revision}
    newest = next((commits[each.path] for each in files if each.path in commits), at)
    return Listing(repository, newest, files)


def _ms_base() -> str:
    given = os.environ.get("MODELSCOPE_DOMAIN", "").strip().rstrip("/")
    if not given:
        return _MS
    return given if "://" in given else f"https://{given}"


def ms_headers(store: Store) -> dict[str, str]:
    """Return the headers that carry the token, if there is one."""
    token = _secret(store.ms_token) or os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
    return {"cookie": f"m_session_id={token}"} if token else {}


# ── both ──


def _matches(path: str, wanted: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2].lower()
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)


def _secret(secret: Secret | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return what a secret holds; raises StoreError when it cannot be read."""
    if secret is None:
        return ""
    if secret.kind == "env":
        value = environment.get(secret.where, "")
    else:
        try:
            value = Path(secret.where).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise StoreError(f"the token in {secret.where} cannot be read: {reason}") from None
    if not value.strip():
        raise StoreError(f"{secret} holds no token")
    return value.strip()


HUBS: dict[str, tuple[Hub, Callable[[Store], dict[str, str]]]] = {
    "hf": (hugging_face, hf_headers),
    "ms": (modelscope, ms_headers),
}

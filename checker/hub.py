"""Files on a hub or on any web server: what they are (size, sha256), and their GGUF headers by HTTP range.

A hub here is one that speaks Hugging Face's protocol: the `resolve` URL of a file answers with `X-Linked-Etag` (the
sha256 of a large file) and `X-Linked-Size`, and leads on to the server that has the bytes. `HF_ENDPOINT` names another
one, such as a mirror. The user's token goes to that hub alone, never to where it leads on to, and is in no message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from checker import header_cache
from checker.gguf import GgufError, Part, read_part

ENDPOINT = "https://huggingface.co"
# For the headers of all parts of a model together. The vocabulary makes nearly all of it: 6 to 13 MB in large ones.
BUDGET = 16_000_000
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces of an answer
_REDIRECTS = 5
_TRIES_WITHOUT_A_BYTE = 3
_PIECE = 64 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFacts:
    """What a server says of a file without sending it; None is what it does not say."""

    server: str
    size: int | None
    sha256: str | None
    etag: str | None

    @property
    def content(self) -> str | None:
        """Name the file's content, so that what was read of it can be found again."""
        if self.sha256:
            return f"sha256 {self.sha256}"
        # An ETag means something to the server that made it, and to no other.
        return f"etag {self.etag} of {self.size} bytes at {self.server}" if self.etag and self.size else None


def endpoint() -> str:
    """Return the hub's address."""
    address = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    if not _address(address):
        raise GgufError(f"HF_ENDPOINT is {_raw(address)}, expected an address such as {ENDPOINT}")
    return address


def resolve_url(repository: str, revision: str, file: str) -> str:
    """Return the address of a file on the hub; `file` may be in a folder of the repository."""
    return f"{endpoint()}/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(file)}"


def shown(url: str) -> str:
    """Return a URL as messages may show it: without what can hold a secret (user, password, query)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _raw(url: str) -> str:
    """Return the same of a text that is no URL."""
    return repr(url.partition("?")[0].rpartition("@")[2])


def _address(url: str) -> bool:
    """Tell whether a URL is the address of something on a web server."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        return False


def token_file() -> Path:
    """Return where `hf auth login` keeps the token (huggingface_hub, constants.py)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()


def token() -> str | None:
    """Return the user's token of the hub, from HF_TOKEN or from its file, if there is one."""
    value = os.environ.get("HF_TOKEN") or ""
    if not value.strip():
        try:
            value = token_file().read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
    value = value.strip()
    if value and not re.fullmatch(r"[!-~]+", value):
        raise GgufError("the token in HF_TOKEN or its file is no token: expected one word of plain characters")
    return value or None


class _Bearer(requests.auth.AuthBase):
    """The hub's token; as an `auth` it also keeps requests from putting one of ~/.netrc in its place."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._word}"
        return request


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class Web:
    """Connections to servers, and what may still be transferred over them."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.left = budget
        self._session = requests.Session()
        again = Retry(
            total=2,
            status_forcelist=[408, 429, 500, 502, 503, 504],
            allowed_methods={"GET", "HEAD"},
            backoff_factor=0.2,
            respect_retry_after_header=False,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again))

    def __enter__(self) -> Web:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def ask(self, method: str, url: str, where: str, headers: dict[str, str]) -> requests.Response:
        """Ask for a URL and return the answer, a redirect as it is; its body is not read yet."""
        word = token() if _origin(url) == _origin(endpoint()) else None
        try:
            return self._session.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                auth=_Bearer(word) if word else None,
                stream=True,
                allow_redirects=False,
                timeout=_TIMEOUT_S,
            )
        except (requests.RequestException, ValueError) as error:
            raise GgufError(f"{where} cannot be reached: {_reason(error)}") from None

    def follow(self, url: str, answer: requests.Response, where: str) -> str:
        """Return where a redirect leads to."""
        answer.close()
        location = answer.headers["Location"]
        try:
            target = urljoin(url, location)
        except ValueError:
            target = location
        if not _address(target):
            raise GgufError(f"{where} leads on to {_raw(target)}, expected a web address")
        return target


def _reason(error: BaseException) -> str:
    """Say in a few words why a request failed; never with the URL, whose query can be a signature."""
    cause: object = error
    while isinstance(cause, BaseException):
        inner = getattr(cause, "reason", None) or next((a for a in cause.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    text = re.sub(r"^.*?: (?=Failed to|\[)", "", str(cause)) or type(cause).__name__
    return re.sub(r"\b(url:?|https?://)\s*\S+", "", text).strip() or type(cause).__name__


def _refused(answer: requests.Response, url: str, where: str) -> GgufError:
    """Say what an answer that is no success means."""
    said = f"{where} answers {answer.status_code} {answer.reason}".rstrip()
    at_hub = _origin(url) == _origin(endpoint())
    if answer.status_code in (401, 403) and at_hub and answer.request.headers.get("Authorization"):
        return GgufError(
            f"{said}, although the token of HF_TOKEN (or {token_file()}) was sent: the model is gated and its terms "
            "are not accepted on its page, the token may not read it, or there is no such repository"
        )
    if answer.status_code in (401, 403) and at_hub:
        return GgufError(
            f"{said}: the model is gated or private, or there is no such repository (the hub says the same of each). "
            f"Accept its terms on its page and set HF_TOKEN in the environment, or log in (token in {token_file()})"
        )
    if answer.status_code in (401, 403):
        return GgufError(f"{said}: the server asks for a login; expected a file that is open, or a mirror of it")
    if answer.status_code in (404, 410):
        return GgufError(f"{said}: there is no such file; check repository, revision and name (capitals count)")
    return GgufError(f"{said}; expected the file")


def file_facts(web: Web, url: str) -> FileFacts:
    """Ask what a file is, without its bytes: one HEAD request to the hub, or as many as a server's redirects need."""
    where, at = shown(url), url
    for _ in range(_REDIRECTS + 1):
        answer = web.ask("HEAD", at, where, {})
        headers = answer.headers
        linked = _etag(headers.get("X-Linked-Etag"))
        server = urlsplit(at).netloc.rpartition("@")[2]
        if linked or not answer.is_redirect:
            answer.close()
            if not linked and answer.status_code in (405, 501):  # a server without HEAD has not said anything of it
                return FileFacts(server, None, None, None)
            if answer.status_code >= 400:
                raise _refused(answer, at, where)
            length = headers.get("X-Linked-Size" if linked else "Content-Length", "")
            etag = linked or _etag(headers.get("ETag"))
            # Only a hub's own word: what another server's ETag is made of is not known.
            known = linked and _origin(at) in (_origin(endpoint()), _origin(ENDPOINT)) and _SHA256.fullmatch(linked)
            return FileFacts(
                server,
                size=int(length) if re.fullmatch(r"\d{1,18}", length) else None,
                sha256=linked if known else None,
                etag=etag,
            )
        at = web.follow(at, answer, where)
    raise GgufError(f"{where} leads on and on; expected a file after at most {_REDIRECTS} redirects")


def _etag(value: str | None) -> str | None:
    return value.removeprefix("W/").strip('"') or None if value else None


class RemoteFile:
    """A file on a web server as a source of bytes, read by range; where it led to is asked directly from then on."""

    def __init__(self, web: Web, url: str) -> None:
        self.where = shown(url)
        self.size: int | None = None
        self._web = web
        self._url = url

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start` on; GgufError when that cannot be, or the budget is spent."""
        for _ in range(_TRIES_WITHOUT_A_BYTE):
            wanted = min(length, self._web.left)
            if wanted < 1:
                raise GgufError(
                    f"{self.where}: its header is longer than {BUDGET:,} bytes, expected less; "
                    "fetch the file and give its path"
                )
            answer = self._get(start, wanted)
            if answer is None:
                return b""
            with answer:
                body, reason = self._body(answer, wanted)
            if body:
                return body
        raise GgufError(f"{self.where} sent nothing in {_TRIES_WITHOUT_A_BYTE} tries ({reason})")

    def _get(self, start: int, wanted: int) -> requests.Response | None:
        """Ask for a range; None when the file ends before it."""
        for _ in range(_REDIRECTS + 1):
            answer = self._web.ask("GET", self._url, self.where, {"Range": f"bytes={start}-{start + wanted - 1}"})
            if not answer.is_redirect:
                break
            self._url = self._web.follow(self._url, answer, self.where)
        else:
            raise GgufError(f"{self.where} leads on and on; expected a file after at most {_REDIRECTS} redirects")
        if answer.status_code == 416:
            answer.close()
            return None
        if answer.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            encoding = answer.headers.get("Content-Encoding", "identity")
            if span and int(span[1]) == start and encoding == "identity":
                size = int(span[2]) if span[2] != "*" else self.size
                if self.size in (None, size):
                    self.size = size
                    return answer
                answer.close()
                raise GgufError(
                    f"{self.where} changed while it was read ({self.size:,}, then {size:,} bytes); try again"
                )
            answer.close()
            raise GgufError(
                f"{self.where} answers a request for bytes from {start:,} with Content-Range "
                f"{answer.headers.get('Content-Range')!r} ({encoding}); expected that range, as it is in the file"
            )
        with answer:
            if answer.status_code != 200:
                raise _refused(answer, self._url, self.where)
            raise self._without_ranges(answer)

    def _without_ranges(self, answer: requests.Response) -> GgufError:
        """Look at the beginning of an answer that is the whole file, or a page in its place; the rest is left."""
        beginning, _ = self._body(answer, min(64, self._web.left))
        kind = answer.headers.get("Content-Type", "no type")
        if beginning and not beginning.startswith(b"GGUF"):
            text = beginning[:60].decode("utf-8", errors="replace")
            return GgufError(
                f"{self.where} is no GGUF: it is {kind} and begins with {text!r}, expected 'GGUF'; "
                "is it a page for a login or a proxy's?"
            )
        size = answer.headers.get("Content-Length")
        return GgufError(
            f"{self.where}: the server has no byte ranges (it answers 200, expected 206), so that the header could "
            f"only be had with the whole file{f' of {int(size):,} bytes' if size and size.isdigit() else ''}; "
            "fetch the file and give its path, or use a server with ranges"
        )

    def _body(self, answer: requests.Response, wanted: int) -> tuple[bytes, str]:
        """Read up to `wanted` bytes; also say why there are not more of them."""
        body, reason = bytearray(), "the connection was cut"
        try:
            for piece in answer.iter_content(min(_PIECE, wanted)):
                body += piece
                if len(body) >= wanted:
                    break
        except requests.RequestException as error:
            reason = _reason(error)
        self._web.left -= len(body)
        return bytes(body[:wanted]), reason


def read_parts(urls: Sequence[str], sha256s: Sequence[str | None] | None = None, web: Web | None = None) -> list[Part]:
    """Read the headers of a model's files, from the cache where their content was read before.

    A file whose sha256 is given and in the cache is not asked for at all; of others the server is asked what they are.
    """
    for url in urls:
        if not _address(url):
            raise GgufError(f"{_raw(url)} is no address of a file on a web server")
    with web or Web() as connections:
        known = sha256s or [None] * len(urls)
        return [_read_part(connections, url, sha256) for url, sha256 in zip(urls, known, strict=True)]


def _read_part(web: Web, url: str, sha256: str | None) -> Part:
    part = header_cache.load(f"sha256 {sha256}") if sha256 else None
    if part:
        return part
    try:
        facts = file_facts(web, url)
    except GgufError:  # a signed address may answer GET alone; if it does not, that is the error
        facts = FileFacts("", None, None, None)
    return read_known(web, url, facts)


def read_known(web: Web, url: str, facts: FileFacts) -> Part:
    """Read the header of a file of which the server said what it is, from the cache if that was read before."""
    part = header_cache.load(facts.content) if facts.content else None
    if part is None:
        part = read_part(RemoteFile(web, url))
        if facts.content:
            header_cache.store(facts.content, part)
    return part

"""Fetch one file over HTTP: resumed by byte range, hashed while it streams, published only when it is the right one.

While it is fetched a file is `<dest>.part`; a file that proves wrong is kept as `<dest>.rejected` for a look. What was
verified is remembered beside the file (`checker.fetched`).
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from checker import fetched

MIB = 1024 * 1024
_CHUNK = 1 * MIB
_PIECE = 64 * 1024  # of an answer; a piece that a cut connection leaves incomplete is lost
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces of an answer
_TRIES_WITHOUT_A_BYTE = 5
_PAUSE_S = 0.2  # before the second try; it doubles from try to try
_REPORT_EVERY_S = 1.0
# Room that is left alone: a full file system would take the host down with the fetch.
_RESERVE = 256 * MIB

Report = Callable[[str], None]


class DownloadError(Exception):
    """A file that could not be fetched; the message names URL or file, what was found, and what to do."""


@dataclass(frozen=True)
class Wanted:
    """The file that is to be at `dest`. `size` in bytes, None when unknown; `magic` are its first bytes, if known."""

    url: str
    dest: Path
    sha256: str
    size: int | None = None
    magic: bytes = b""

    @property
    def part(self) -> Path:
        """Where the file is while it is fetched."""
        return self.dest.with_name(self.dest.name + ".part")

    @property
    def rejected(self) -> Path:
        """Where a file goes that proved wrong."""
        return self.dest.with_name(self.dest.name + ".rejected")


@dataclass(frozen=True)
class Fetched:
    """What a fetch did: bytes that were there already, bytes that were transferred, seconds."""

    resumed_from: int
    transferred_bytes: int
    seconds: float


def already_there(dest: Path, sha256: str) -> bool:
    """Whether the file was verified with this sha256 before and was not touched since; reads only its metadata."""
    return fetched.sha256_of(dest) == sha256


def _free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def _check_room(wanted: Wanted, to_come: int, free: int) -> None:
    needed = to_come + _RESERVE
    if needed > free:
        raise DownloadError(
            f"{wanted.dest}: {to_come / MIB:,.0f} MiB are to come and {_RESERVE / MIB:,.0f} MiB stay free, but "
            f"{wanted.dest.parent} has {free / MIB:,.0f} MiB; free {(needed - free) / MIB:,.0f} MiB there"
        )


def _check_magic(wanted: Wanted, beginning: bytes, content_type: str) -> None:
    if wanted.magic and beginning and not beginning.startswith(wanted.magic[: len(beginning)]):
        shown = beginning[:60].decode("utf-8", errors="replace")
        raise DownloadError(
            f"{wanted.url} is no {wanted.magic.decode()} file: it begins with {shown!r} and says it is "
            f"{content_type or 'of no type'}; check the URL, and whether it asks for a login"
        )


def _total_bytes(answer: requests.Response, start: int) -> int | None:
    """Return the whole size of the file that an answer belongs to."""
    if answer.status_code == 206:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and "Content-Encoding" not in answer.headers else None


class _Progress:
    def __init__(self, wanted: Wanted, report: Report, there: int) -> None:
        self._name = wanted.dest.name
        self._report = report
        self._began = self._said = time.monotonic()
        self._first = there

    def say(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._said < _REPORT_EVERY_S:
            return
        self._said = now
        rate = (done - self._first) / (now - self._began)
        of = f" of {total / MIB:,.0f}" if total else ""
        left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
        self._report(f"{self._name}: {done / MIB:,.0f}{of} MiB, {rate / MIB:,.1f} MiB/s{left}")


def fetch(wanted: Wanted, report: Report, free_bytes: Callable[[Path], int] = _free_bytes) -> Fetched:
    """Fetch a file, going on from what an earlier try left; DownloadError when it cannot be had or is the wrong one."""
    began = time.monotonic()
    wanted.dest.parent.mkdir(parents=True, exist_ok=True)
    with _alone(wanted, report):
        if already_there(wanted.dest, wanted.sha256):  # another fetch had it in the meantime
            resumed_from, transferred = wanted.dest.stat().st_size, 0
        else:
            resumed_from, transferred = _transfer(wanted, report, free_bytes)
    return Fetched(resumed_from=resumed_from, transferred_bytes=transferred, seconds=time.monotonic() - began)


@contextmanager
def _alone(wanted: Wanted, report: Report) -> Iterator[None]:
    """Let one fetch at a time into a folder: one whose playbook was interrupted goes on in the background."""
    descriptor = os.open(wanted.dest.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{wanted.dest.name}: waiting for another fetch into {wanted.dest.parent}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _transfer(wanted: Wanted, report: Report, free_bytes: Callable[[Path], int]) -> tuple[int, int]:
    """Fetch and publish; return the bytes that were there already and those that were transferred."""
    digest = hashlib.sha256()
    there = 0
    if wanted.part.exists():
        report(f"{wanted.dest.name}: reading the {wanted.part.stat().st_size / MIB:,.0f} MiB that are there")
        there = _hash_part(wanted, digest)
    resumed_from, transferred, idle_tries = there, 0, 0
    progress = _Progress(wanted, report, there)
    if wanted.size is not None:
        _check_room(wanted, wanted.size - there, free_bytes(wanted.dest.parent))
    while wanted.size is None or there < wanted.size:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
        before = there
        complete = False
        try:
            with requests.get(wanted.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
                if answer.status_code == 416:  # nothing follows what is there
                    break
                _check_status(wanted, answer)
                start = there if answer.status_code == 206 else 0
                pieces = answer.iter_content(_PIECE)
                beginning = next(pieces, b"")
                if start == 0:
                    _check_magic(wanted, beginning, answer.headers.get("Content-Type", ""))
                total = _total_bytes(answer, start)
                _check_size(wanted, total)
                size = wanted.size if total is None else total
                if size is not None:
                    _check_room(wanted, size - start, free_bytes(wanted.dest.parent) + there - start)
                if start < there:  # the server cannot resume
                    digest, there, resumed_from = hashlib.sha256(), 0, 0
                with wanted.part.open("r+b" if wanted.part.exists() else "w+b") as part:
                    part.seek(there)
                    part.truncate()
                    for piece in itertools.chain([beginning], pieces):
                        part.write(piece)
                        digest.update(piece)
                        there += len(piece)
                        transferred += len(piece)
                        progress.say(there, size)
                complete = size is None or there >= size
        except requests.RequestException as error:
            reason = str(error)
        else:
            reason = "the connection was cut"
        if complete:
            break
        idle_tries = 0 if there > before else idle_tries + 1
        if idle_tries == _TRIES_WITHOUT_A_BYTE:
            raise DownloadError(
                f"{wanted.url} gave nothing in {idle_tries} tries ({reason}); {there / MIB:,.0f} MiB are kept in "
                f"{wanted.part}, and the next run goes on from there"
            )
        time.sleep(min(_PAUSE_S * 2**idle_tries, 5.0))
    _publish(wanted, digest.hexdigest(), there)
    return resumed_from, transferred


def _hash_part(wanted: Wanted, digest: hashlib._Hash) -> int:
    there = 0
    with wanted.part.open("rb") as part:
        while chunk := part.read(_CHUNK):
            digest.update(chunk)
            there += len(chunk)
    return there


def _check_status(wanted: Wanted, answer: requests.Response) -> None:
    if answer.status_code in (401, 403):
        raise DownloadError(
            f"{wanted.url} answers {answer.status_code} {answer.reason}: it asks for a login; put the file on a mirror "
            "(llama_tiers_mirror), or take a source that is open"
        )
    if answer.status_code in (408, 429) or answer.status_code >= 500:  # may be over in a moment
        raise requests.HTTPError(f"it answers {answer.status_code} {answer.reason}")
    if answer.status_code not in (200, 206):
        raise DownloadError(f"{wanted.url} answers {answer.status_code} {answer.reason}; check the URL")


def _check_size(wanted: Wanted, total: int | None) -> None:
    if wanted.size is not None and total is not None and total != wanted.size:
        raise DownloadError(
            f"{wanted.url} has {total:,} bytes, {wanted.size:,} are expected; it is another or a cut file: check the "
            "URL and the catalogue"
        )


def _publish(wanted: Wanted, sha256: str, size: int) -> None:
    if sha256 != wanted.sha256:
        wanted.part.replace(wanted.rejected)
        raise DownloadError(
            f"{wanted.url} has sha256 {sha256} ({size:,} bytes), {wanted.sha256} is expected; nothing was published, "
            f"the file is kept as {wanted.rejected}: try again, or mend the catalogue if the file is right"
        )
    descriptor = os.open(wanted.part, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o644)  # whatever the umask was: other users serve it
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    wanted.part.replace(wanted.dest)
    wanted.rejected.unlink(missing_ok=True)
    fetched.remember(wanted.dest, wanted.sha256)

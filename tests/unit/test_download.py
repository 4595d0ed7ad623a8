"""download: what is asked of the server, what lies on the disk afterwards, and what a refusal says."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import file_server
import pytest

from checker import download
from checker.download import DownloadError, Wanted

MIB = 1024 * 1024
CONTENT = b"GGUF" + random.Random(1).randbytes(3 * MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROOMY = 1024**4


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[file_server.FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE_S", 0.001)
    with file_server.serving(CONTENT) as server:
        yield server


def wanted(
    served: file_server.FileServer, tmp_path: Path, sha256: str = SHA256, size: int | None = len(CONTENT)
) -> Wanted:
    return Wanted(served.url, tmp_path / "ab" / "model.gguf", sha256, size, b"GGUF")


def fetch(file: Wanted, free: int = ROOMY) -> download.Fetched:
    return download.fetch(file, lambda line: None, lambda directory: free)


def names(file: Wanted) -> list[str]:
    """Name what lies in the file's folder."""
    return sorted(path.name for path in file.dest.parent.iterdir())


def leave_part(file: Wanted, content: bytes) -> None:
    file.part.parent.mkdir(parents=True, exist_ok=True)
    file.part.write_bytes(content)


def test_a_fresh_fetch_publishes_the_file_and_leaves_nothing_else(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    file = wanted(served, tmp_path)

    fetched = fetch(file)

    assert (fetched.resumed_from, fetched.transferred_bytes) == (0, len(CONTENT))
    assert file.dest.read_bytes() == CONTENT
    assert names(file) == ["model.gguf", "model.gguf.verified"]
    assert served.asked == [None]


def test_everybody_may_read_the_file_under_any_umask(served: file_server.FileServer, tmp_path: Path) -> None:
    file = wanted(served, tmp_path)
    before = os.umask(0o077)
    try:
        fetch(file)
    finally:
        os.umask(before)

    assert file.dest.stat().st_mode & 0o777 == 0o644


def test_what_was_verified_is_known_without_reading_it(
    served: file_server.FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = wanted(served, tmp_path)
    assert not download.already_there(file.dest, SHA256)
    fetch(file)

    opened: list[Path] = []
    path_open = Path.open

    def note(path: Path, *args: object, **more: object) -> object:
        opened.append(path)
        return path_open(path, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", note)
    assert download.already_there(file.dest, SHA256)
    assert not download.already_there(file.dest, "f" * 64)
    assert file.dest not in opened


@pytest.mark.parametrize("change", ["touched", "replaced", "longer", "removed", "record broken"])
def test_a_file_that_was_changed_since_is_not_taken_for_verified(
    served: file_server.FileServer, tmp_path: Path, change: str
) -> None:
    file = wanted(served, tmp_path)
    fetch(file)

    match change:
        case "touched":
            os.utime(file.dest)
        case "replaced":
            other = tmp_path / "other"
            other.write_bytes(CONTENT[::-1])
            other.replace(file.dest)
        case "longer":
            status = file.dest.stat()
            with file.dest.open("ab") as model:
                model.write(b"more")
            os.utime(file.dest, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "removed":
            file.dest.unlink()
        case "record broken":
            file.dest.with_name("model.gguf.verified").write_text("{")

    assert not download.already_there(file.dest, SHA256)
    fetch(file)
    assert file.dest.read_bytes() == CONTENT
    assert download.already_there(file.dest, SHA256)


def test_cut_connections_go_on_where_they_were_cut(served: file_server.FileServer, tmp_path: Path) -> None:
    served.cuts = [512 * 1024, 256 * 1024, MIB]
    file = wanted(served, tmp_path)

    fetched = fetch(file)

    assert served.asked == [None, "bytes=524288-", "bytes=786432-", "bytes=1835008-"]
    assert (fetched.resumed_from, fetched.transferred_bytes) == (0, len(CONTENT))
    assert file.dest.read_bytes() == CONTENT


def test_a_server_that_cuts_again_and_again_is_not_given_up_while_bytes_come(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    served.cuts = [128 * 1024] * 20

    fetch(wanted(served, tmp_path))

    assert len(served.asked) == 21


def test_what_an_earlier_try_left_is_gone_on_with(served: file_server.FileServer, tmp_path: Path) -> None:
    file = wanted(served, tmp_path)
    leave_part(file, CONTENT[:1_000_001])

    fetched = fetch(file)

    assert served.asked == ["bytes=1000001-"]
    assert (fetched.resumed_from, fetched.transferred_bytes) == (1_000_001, len(CONTENT) - 1_000_001)
    assert file.dest.read_bytes() == CONTENT
    assert names(file) == ["model.gguf", "model.gguf.verified"]


def test_a_part_that_is_the_whole_file_needs_no_request(served: file_server.FileServer, tmp_path: Path) -> None:
    file = wanted(served, tmp_path)
    leave_part(file, CONTENT)

    assert fetch(file).transferred_bytes == 0
    assert served.asked == []
    assert file.dest.read_bytes() == CONTENT


def test_all_was_there_but_the_size_was_not_known(served: file_server.FileServer, tmp_path: Path) -> None:
    file = wanted(served, tmp_path, size=None)
    leave_part(file, CONTENT)

    assert fetch(file).transferred_bytes == 0
    assert served.asked == [f"bytes={len(CONTENT)}-"]  # answered by 416
    assert file.dest.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(served: file_server.FileServer, tmp_path: Path) -> None:
    served.ranges = False
    file = wanted(served, tmp_path)
    leave_part(file, b"GGUF" + b"x" * MIB)

    fetched = fetch(file)

    assert served.asked == [f"bytes={MIB + 4}-"]
    assert (fetched.resumed_from, fetched.transferred_bytes) == (0, len(CONTENT))
    assert file.dest.read_bytes() == CONTENT


def test_an_unknown_size_is_taken_from_the_server(served: file_server.FileServer, tmp_path: Path) -> None:
    served.cuts = [MIB]
    file = wanted(served, tmp_path, size=None)

    fetch(file)

    assert served.asked == [None, f"bytes={MIB}-"]
    assert file.dest.read_bytes() == CONTENT


def test_a_server_that_tells_no_length_is_asked_again_after_a_cut(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    served.tells_length = False
    served.cuts = [MIB]
    file = wanted(served, tmp_path)

    fetch(file)

    assert served.asked == [None, f"bytes={MIB}-"]
    assert file.dest.read_bytes() == CONTENT


def test_a_wrong_sha256_is_refused_with_both_and_the_file_is_kept_apart(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    file = wanted(served, tmp_path, sha256="f" * 64)

    with pytest.raises(DownloadError) as refused:
        fetch(file)

    for piece in (SHA256, "f" * 64, "nothing was published", str(file.rejected)):
        assert piece in str(refused.value)
    assert names(file) == ["model.gguf.rejected"]
    assert file.rejected.read_bytes() == CONTENT


def test_the_right_file_removes_what_was_kept_apart(served: file_server.FileServer, tmp_path: Path) -> None:
    served.content = CONTENT[:-1] + b"?"
    file = wanted(served, tmp_path)
    with pytest.raises(DownloadError):
        fetch(file)
    served.content = CONTENT

    fetch(file)

    assert names(file) == ["model.gguf", "model.gguf.verified"]


def test_a_file_that_replaces_another_goes_over_it_only_when_it_is_right(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    file = wanted(served, tmp_path)
    fetch(file)
    os.utime(file.dest)
    served.content = CONTENT[:-1] + b"?"

    with pytest.raises(DownloadError):
        fetch(file)

    assert file.dest.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_page_in_the_place_of_the_file_is_refused_by_what_it_begins_with(
    served: file_server.FileServer, tmp_path: Path, size: int | None
) -> None:
    served.content, served.content_type = b"<!DOCTYPE html><title>Please log in", "text/html"
    file = wanted(served, tmp_path, size=size)

    with pytest.raises(DownloadError, match=r"no GGUF file: it begins with '<!DOCTYPE html>.*text/html.*login"):
        fetch(file)

    assert names(file) == []


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_page_in_the_place_of_the_rest_leaves_what_is_there(
    served: file_server.FileServer, tmp_path: Path, size: int | None
) -> None:
    file = wanted(served, tmp_path, size=size)
    leave_part(file, CONTENT[:MIB])
    served.ranges = False
    served.content, served.content_type = b"<!DOCTYPE html>" + b" " * (len(CONTENT) - 15), "text/html"

    with pytest.raises(DownloadError, match="no GGUF file"):
        fetch(file)

    assert file.part.read_bytes() == CONTENT[:MIB]


@pytest.mark.parametrize("content", [CONTENT[:MIB], CONTENT + b"garbage"])
def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    served: file_server.FileServer, tmp_path: Path, content: bytes
) -> None:
    served.content = content
    file = wanted(served, tmp_path)

    with pytest.raises(DownloadError, match=f"has {len(content):,} bytes, {len(CONTENT):,} are expected"):
        fetch(file)

    assert names(file) == []


def test_garbage_after_the_file_is_refused_when_no_size_was_told(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    served.tells_length = False
    served.content = CONTENT + b"garbage"
    file = wanted(served, tmp_path)

    with pytest.raises(DownloadError, match=hashlib.sha256(served.content).hexdigest()):
        fetch(file)

    assert names(file) == ["model.gguf.rejected"]


def test_no_room_is_refused_with_the_figures_before_the_server_is_asked(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    file = wanted(served, tmp_path, size=1000 * MIB)
    leave_part(file, CONTENT[: 2 * MIB])

    with pytest.raises(DownloadError) as refused:
        fetch(file, free=900 * MIB)

    for piece in ("998 MiB are to come", "256 MiB stay free", f"{file.dest.parent} has 900 MiB", "free 354 MiB there"):
        assert piece in str(refused.value)
    assert served.asked == []
    assert file.part.read_bytes() == CONTENT[: 2 * MIB]


def test_no_room_for_a_size_that_only_the_server_knew(served: file_server.FileServer, tmp_path: Path) -> None:
    file = wanted(served, tmp_path, size=None)

    with pytest.raises(DownloadError, match=r"3 MiB are to come .* has 1 MiB; free 258 MiB there"):
        fetch(file, free=MIB)

    assert names(file) == []


def test_what_starts_over_may_use_the_room_of_what_is_thrown_away(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    served.ranges = False
    file = wanted(served, tmp_path)
    leave_part(file, CONTENT[: 2 * MIB])

    fetch(file, free=258 * MIB)

    assert file.dest.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "says"), [(401, "asks for a login"), (403, "asks for a login"), (404, "the URL")])
def test_an_answer_that_will_not_change_is_not_tried_again(
    served: file_server.FileServer, tmp_path: Path, status: int, says: str
) -> None:
    served.statuses = [status]

    with pytest.raises(DownloadError, match=f"answers {status} .*{says}"):
        fetch(wanted(served, tmp_path))

    assert len(served.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(served: file_server.FileServer, tmp_path: Path, status: int) -> None:
    served.statuses = [status, status]
    file = wanted(served, tmp_path)

    fetch(file)

    assert served.asked == [None] * 3
    assert file.dest.read_bytes() == CONTENT


def test_a_server_that_gives_nothing_more_is_given_up_and_what_came_is_kept(
    served: file_server.FileServer, tmp_path: Path
) -> None:
    served.cuts = [MIB, *[0] * 9]
    file = wanted(served, tmp_path)

    with pytest.raises(DownloadError) as refused:
        fetch(file)

    for piece in ("gave nothing in 5 tries", f"1 MiB are kept in {file.part}", "the next run goes on from there"):
        assert piece in str(refused.value)
    assert served.asked == [None, *[f"bytes={MIB}-"] * 5]
    assert names(file) == ["model.gguf.part"]

    served.cuts = []
    assert fetch(file).resumed_from == MIB
    assert file.dest.read_bytes() == CONTENT


def test_nobody_at_the_address_is_given_up_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", 0.001)
    with file_server.serving(CONTENT) as gone:
        file = wanted(gone, tmp_path)

    with pytest.raises(DownloadError, match=r"gave nothing in 5 tries \(.*refused"):
        fetch(file)


def test_a_second_fetch_waits_for_the_first_and_takes_its_file(
    served: file_server.FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An interrupted ansible-playbook leaves its fetch running on the host; the next one must not write between.
    file = wanted(served, tmp_path)
    waits = threading.Event()
    free_asked = threading.Event()

    def first_is_inside(directory: Path) -> int:
        free_asked.set()
        assert waits.wait(10)
        return ROOMY

    first = threading.Thread(target=download.fetch, args=(file, lambda line: None, first_is_inside))
    first.start()
    assert free_asked.wait(10)
    said: list[str] = []
    second: list[download.Fetched] = []
    other = threading.Thread(target=lambda: second.append(download.fetch(file, said.append)))
    other.start()
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    waits.set()
    first.join(10)
    other.join(10)

    assert "waiting" in said[0]
    assert served.asked == [None]
    assert second[0].transferred_bytes == 0
    assert file.dest.read_bytes() == CONTENT

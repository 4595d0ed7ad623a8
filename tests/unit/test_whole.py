"""A file is the old one or the new one, and nothing lies beside it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from checker import whole


def test_a_file_takes_the_place_of_another_and_everybody_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "folder/file.json"
    for text in ("one", "two"):
        whole.write(path, text)
        assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o644
    whole.write(path, "three", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(type(error)):
        whole.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_has_no_bytes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        whole.write(tmp_path / "file.json", "\ud800")
    assert list(tmp_path.iterdir()) == []

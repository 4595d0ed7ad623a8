"""write_files: what differs is written, and nothing of what is not valid together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modules import run


def written(folder: Path, texts: dict[str, str], **options: Any) -> dict[str, Any]:
    return run(
        "write_files", files=[{"path": str(folder / name), "content": text} for name, text in texts.items()], **options
    )


def test_files_and_their_folders_are_made_and_a_second_time_nothing_changes(tmp_path: Path) -> None:
    texts = {"one/a.txt": "a\n", "two/b.txt": "b: ü\n"}
    result = written(tmp_path, texts)
    assert result["changed"] is True
    assert result["written"] == [str(tmp_path / name) for name in texts]
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in texts} == texts
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in texts} == {0o644}

    again = written(tmp_path, texts)
    assert (again["changed"], again["written"]) == (False, [])


def test_only_what_differs_is_written_and_shown(tmp_path: Path) -> None:
    written(tmp_path, {"a": "old\n", "b": "same\n"})
    before = (tmp_path / "b").stat().st_ino
    result = written(tmp_path, {"a": "new\n", "b": "same\n"})
    assert result["written"] == [str(tmp_path / "a")]
    (diff,) = result["diff"]
    assert (diff["before"], diff["after"], diff["after_header"]) == ("old\n", "new\n", str(tmp_path / "a"))
    assert (tmp_path / "b").stat().st_ino == before


def test_a_mode_that_differs_is_a_change(tmp_path: Path) -> None:
    written(tmp_path, {"a": "text\n"})
    result = written(tmp_path, {"a": "text\n"}, mode="0600")
    assert (result["changed"], result["written"]) == (True, [])
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_check_mode_tells_and_writes_nothing(tmp_path: Path) -> None:
    result = written(tmp_path, {"new/a": "text\n"}, validate=["/bin/false"], check=True)
    assert result["changed"] is True
    assert result["diff"][0]["after"] == "text\n"
    assert list(tmp_path.iterdir()) == []


# Both files are there, under their own names, before either is written.
SAME = ["/bin/sh", "-c", 'cmp -s "$0/a" "$0/b" || { echo "$0/a differs"; exit 1; }', "%s"]


def test_what_is_not_valid_together_is_not_written_at_all(tmp_path: Path) -> None:
    written(tmp_path, {"a": "1\n", "b": "1\n"}, validate=SAME)
    result = written(tmp_path, {"a": "2\n", "b": "1\n"}, validate=SAME)
    assert result["failed"] is True
    assert result["msg"] == "not valid, so nothing is written (a): a differs"
    assert (tmp_path / "a").read_text() == "1\n"
    assert written(tmp_path, {"a": "2\n", "b": "2\n"}, validate=SAME)["written"] == [
        str(tmp_path / each) for each in "ab"
    ]


def test_what_does_not_differ_is_not_judged(tmp_path: Path) -> None:
    written(tmp_path, {"a": "1\n"})
    assert written(tmp_path, {"a": "1\n"}, validate=["/bin/false"])["changed"] is False


@pytest.mark.parametrize("place", ["file/a", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    result = written(tmp_path, {place: "text\n"})
    assert result["failed"] is True
    assert str(tmp_path / place.split("/")[0]) in result["msg"]

"""The links beside the releases."""

from __future__ import annotations

from pathlib import Path

import power
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checker import releases


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have releases a, b, c and d, none of them current."""
    monkeypatch.setattr(releases, "ROOT", tmp_path)
    for name in "abcd":
        (tmp_path / "releases" / name).mkdir(parents=True)
    return tmp_path


def test_the_first_release_is_current_and_none_is_previous(root: Path) -> None:
    assert releases.linked() == ()
    assert releases.make_current("a")
    assert not releases.make_current("a")
    assert str((root / "current").readlink()) == "releases/a"
    assert not (root / "previous").is_symlink()


def test_the_last_three_are_linked(root: Path) -> None:
    for name in "abcd":
        releases.make_current(name)
    assert [str((root / link).readlink()) for link in ("earlier", "previous", "current")] == [
        "releases/b", "releases/c", "releases/d",
    ]  # fmt: skip


def test_what_was_current_before_is_so_again(root: Path) -> None:
    for name in "abc":
        releases.make_current(name)
    releases.go_back_to({"b"})
    assert releases.linked() == ("a", "b")
    assert not (root / "earlier").is_symlink()


@pytest.mark.parametrize("served", [{"c"}, {"d"}, set()])
def test_what_is_current_stays_so_when_it_is_served_or_nothing_of_before_is(root: Path, served: set[str]) -> None:
    for name in "abc":
        releases.make_current(name)
    releases.go_back_to(served)
    assert releases.linked() == ("a", "b", "c")


def test_a_release_that_is_gone_is_passed_over(root: Path) -> None:
    for name in "abc":
        releases.make_current(name)
    (root / "releases/b").rmdir()
    releases.go_back_to({"a", "b"})
    assert releases.linked() == ("a",)


def on_disk(root: Path) -> list[str | None]:
    places = (root / link for link in ("earlier", "previous", "current"))
    return [place.readlink().name if place.is_symlink() else None for place in places]


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("before", ["a", "ab", "abc"])
def test_a_move_that_was_cut_off_is_ended_by_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch, before: str, steps: int
) -> None:
    for name in before:
        releases.make_current(name)
    with power.cut_after(steps):
        releases.make_current("d")
    releases.make_current("d")
    assert on_disk(root) == [None, None, *before, "d"][-3:]


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("before", ["a", "ab"])
def test_a_way_back_that_was_cut_off_is_ended_by_the_next_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, before: str, steps: int
) -> None:
    for name in (*before, "d"):
        releases.make_current(name)
    with power.cut_after(steps):
        releases.go_back_to({before[-1]})
    releases.go_back_to({before[-1]})
    releases.make_current(before[-1])
    assert on_disk(root) == [None, None, *before][-3:]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), st.sampled_from("abcd"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_to_make_one_current_and_to_go_back_leaves_the_last_two(root: Path, names: str, new: str) -> None:
    for name in names:
        releases.make_current(name)
    before = releases.linked()
    if releases.make_current(new):
        releases.go_back_to({before[-1]})
    assert releases.linked()[-2:] == before[-2:]

"""The links beside the releases of llama.cpp on this host, by which people and the lab's cards know them.

`current` is the release that the tiers are given, `previous` the one that was current before, `earlier` the one before
that. They move when tiers are about to be given another release, and go back together when nobody is proven with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

ROOT = Path("/opt/llama-tiers")
# The oldest first.
_LINKS = ("earlier", "previous", "current")


def linked() -> tuple[str, ...]:
    """Return the names of the releases that the links lead to, the oldest first."""
    names = [(ROOT / link).readlink().name for link in _LINKS if (ROOT / link).is_symlink()]
    # Two links in a row lead to the same one where a move was cut off.
    return tuple(name for name, before in zip(names, [None, *names], strict=False) if name != before)


def make_current(name: str) -> bool:
    """Make a release the current one, and the others those before it; return whether it was not.

    Links that a move which was cut off has left are mended.
    """
    before = linked()
    is_new = before[-1:] != (name,)
    _link(_places((*before, name) if is_new else before))
    return is_new


def go_back_to(served: Collection[str]) -> None:
    """Make the release that was current last and that tiers are served from the current one again, if there is one.

    `served` are names of releases. One whose folder is gone is passed over.
    """
    before = linked()
    left = list(before)
    while left and not (left[-1] in served and (ROOT / "releases" / left[-1]).is_dir()):
        left.pop()
    if left and len(left) < len(before):
        _link(_places(left)[::-1])


def _places(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return each link with the release that it is to lead to, the oldest first."""
    return list(zip(_LINKS[::-1], names[::-1], strict=False))[::-1]


def _link(places: Sequence[tuple[str, str]]) -> None:
    """Lay out the links in this order, each replaced in one step, and remove the others.

    The order is one in which a name is in its new place before it leaves the old one, so that a cut loses none.
    """
    for link, name in places:
        target = Path("releases") / name
        if (ROOT / link).is_symlink() and (ROOT / link).readlink() == target:
            continue
        beside = ROOT / f"{link}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        beside.replace(ROOT / link)
    for link in set(_LINKS) - set(dict(places)):
        (ROOT / link).unlink(missing_ok=True)

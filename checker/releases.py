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
    return tuple((ROOT / link).readlink().name for link in _LINKS if (ROOT / link).is_symlink())


def make_current(name: str) -> bool:
    """Make a release the current one, and the others those before it; return whether it was not."""
    before = linked()
    if before[-1:] == (name,):
        return False
    _link((*before, name))
    return True


def go_back_to(served: Collection[str]) -> None:
    """Make the release that was current last and that tiers are served from the current one again, if there is one.

    `served` are names of releases. One whose folder is gone is passed over.
    """
    before = linked()
    left = list(before)
    while left and not (left[-1] in served and (ROOT / "releases" / left[-1]).is_dir()):
        left.pop()
    if left and len(left) < len(before):
        _link(left)


def _link(names: Sequence[str]) -> None:
    """Lay out the links, each replaced in one step, `current` first: it is the one that is looked at."""
    for link, name in zip(reversed(_LINKS), reversed(names), strict=False):
        beside = ROOT / f"{link}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path("releases") / name)
        beside.replace(ROOT / link)
    for link in _LINKS[: max(0, len(_LINKS) - len(names))]:
        (ROOT / link).unlink(missing_ok=True)

"""Which folders of a host nothing refers to: models, and releases of llama.cpp.

One is referred to when the inventory needs it, a link beside its folder points at it (`current`, `previous`), a tier is
to run with it (a candidate that is tried, too), or to go back to it (it was accepted with it), or the tiers were proven
with it, now or before the last change of its kind. The last is remembered on the host, of models and releases each on
their own, so that one step back of either needs neither a download nor a build.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from checker import whole

SCHEMA = "llama-tiers/served/2"
MODELS, RELEASES = "models", "releases"


class PruneError(Exception):
    """A tier spec that does not tell what it needs; the message names it."""


@dataclass(frozen=True)
class Served:
    """The folders of one kind, by name, that the tiers are served from, and that they were before the last change."""

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def after(self, served: Iterable[str]) -> Served:
        """Return what is to be remembered when these are served."""
        now = tuple(sorted(served))
        return self if now == self.now else Served(now, self.now)


@dataclass(frozen=True)
class Unused:
    """A folder that nothing refers to, and its size in MiB."""

    path: Path
    mib: int


def read(path: Path) -> dict[str, Served]:
    """Read what is remembered of a host, by kind; nothing where there is no file, or a damaged one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] == SCHEMA:
            kinds = {kind: document[kind] for kind in (MODELS, RELEASES)}
            return {kind: Served(tuple(each["now"]), tuple(each["before"])) for kind, each in kinds.items()}
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return {MODELS: Served(), RELEASES: Served()}


def after(before: Mapping[str, Served], served: Mapping[str, Iterable[str]]) -> dict[str, Served]:
    """Return what is to be remembered, by kind, when these are served."""
    return {kind: before[kind].after(names) for kind, names in served.items()}


def write(path: Path, served: Mapping[str, Served]) -> None:
    """Remember what is served, by kind."""
    document = {"schema": SCHEMA, **{kind: asdict(each) for kind, each in served.items()}}
    whole.write(path, json.dumps(document, indent=2) + "\n")


def needed(specs: Iterable[Path]) -> dict[str, set[str]]:
    """Return the folders, by kind and name, that the tier specs in these files need; PruneError."""
    names: dict[str, set[str]] = {MODELS: set(), RELEASES: set()}
    for path in specs:
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            names[MODELS].add(Path(spec["model"]["file"]).parent.name)
            names[RELEASES].add(Path(spec["engine"]["release"]).name)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise PruneError(f"{path} does not tell which model and release it needs ({error})") from error
    return names


def linked(directory: Path) -> set[str]:
    """Return the folders of a directory, by name, that links beside it point at."""
    links = (path for path in directory.parent.glob("*") if path.is_symlink())
    targets = (link.parent / link.readlink() for link in links)
    return {target.name for target in targets if target.parent == directory}


def folders(directory: Path, ours: str) -> tuple[Path, ...]:
    """Return the folders whose whole name fits a regular expression, the newest first; any other is not ours."""
    found = [
        path
        for path in (directory.iterdir() if directory.is_dir() else ())
        if path.is_dir() and not path.is_symlink() and re.fullmatch(ours, path.name)
    ]
    return tuple(sorted(found, key=lambda path: path.stat().st_mtime, reverse=True))


def unused(found: Sequence[Path], referred: Collection[str]) -> tuple[Unused, ...]:
    """Return those of some folders that are not among the names that are referred to, in their order."""
    return tuple(
        Unused(path, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) // 2**20)
        for path in found
        if path.name not in referred
    )


def remove(folders: Iterable[Unused]) -> None:
    """Remove folders; OSError when one cannot be."""
    for folder in folders:
        shutil.rmtree(folder.path)

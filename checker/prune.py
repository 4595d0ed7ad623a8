"""Which models of a host nothing refers to: neither the inventory, nor what is served, nor what was served before that.

What was served before the last change is remembered on the host, so that one step back needs no download.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

SCHEMA = "llama-tiers/served/1"
# A model lies in a folder that is named by the first digits of its sha256; what is named otherwise is not ours.
_FOLDER = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Served:
    """The folders of the models that are served, and of those that were served before the last change."""

    now: tuple[str, ...]
    before: tuple[str, ...]

    def after(self, served: Iterable[str]) -> Served:
        """Return what is to be remembered when these are served."""
        now = tuple(sorted(set(served)))
        return self if now == self.now else Served(now, self.now)


@dataclass(frozen=True)
class Unused:
    """A folder that nothing refers to, and its size in MiB."""

    path: Path
    mib: int


def read(path: Path) -> Served:
    """Read what is remembered of a host; nothing where there is no file, or a damaged one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] == SCHEMA:
            return Served(tuple(document["now"]), tuple(document["before"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return Served((), ())


def write(path: Path, served: Served) -> None:
    """Remember what is served, whole or not at all."""
    beside = path.with_suffix(".new")
    document = {"schema": SCHEMA, "now": list(served.now), "before": list(served.before)}
    beside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def unused(directory: Path, referred: Collection[str], served: Served) -> tuple[Unused, ...]:
    """Return the folders of models that nothing refers to; `referred` are the names of those of the inventory."""
    kept = {*referred, *served.now, *served.before}
    return tuple(
        Unused(path, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) // 2**20)
        for path in sorted(directory.iterdir() if directory.is_dir() else ())
        if path.is_dir() and not path.is_symlink() and _FOLDER.fullmatch(path.name) and path.name not in kept
    )


def remove(folders: Iterable[Unused]) -> None:
    """Remove folders of models; OSError when one cannot be."""
    for folder in folders:
        shutil.rmtree(folder.path)

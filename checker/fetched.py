"""What was verified of a file when it was fetched, remembered beside it (`<file>.verified`).

So tens of gigabytes are hashed once in their life: later size and time tell whether it is still that file.
"""

from __future__ import annotations

import json
from pathlib import Path


def _record(file: Path) -> Path:
    return file.with_name(file.name + ".verified")


def remember(file: Path, sha256: str) -> None:
    """Write down that a file was verified with this sha256."""
    status = file.stat()
    record = {"sha256": sha256, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    _record(file).write_text(json.dumps(record) + "\n", encoding="utf-8")


def sha256_of(file: Path) -> str | None:
    """Return the sha256 with which a file was verified, None when it never was or was touched since; hashes nothing."""
    try:
        record = json.loads(_record(file).read_text(encoding="utf-8"))
        status = file.stat()
        sha256 = str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = record == {"sha256": sha256, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    return sha256 if same else None

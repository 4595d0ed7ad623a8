"""What was read of remote GGUFs, by their content: planning the same file again transfers nothing of it.

Kept is what the file says (key-values, tensor table), not what was made of it, so that a better understanding of an
architecture needs no new transfer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from checker import whole
from checker.gguf import Part
from checker.header import Tensor

SCHEMA = "llama-tiers/gguf/1"


def folder() -> Path:
    """Return where the cache is: `$XDG_CACHE_HOME/llama-tiers/headers`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-tiers" / "headers"


def _path(content: str) -> Path:
    return folder() / f"{hashlib.sha256(content.encode()).hexdigest()}.json"


def load(content: str) -> Part | None:
    """Return what was stored for a content; None when there is nothing that can be used."""
    try:
        document = json.loads(_path(content).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA or document["content"] != content:
            return None
        tensors = tuple(
            Tensor(str(name), tuple(int(size) for size in shape), str(kind), int(size_bytes))
            for name, shape, kind, size_bytes in document["tensors"]
        )
        return Part(dict(document["fields"]), tensors)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(content: str, part: Part) -> None:
    """Keep a part; that it cannot be kept is no error."""
    document = {
        "schema": SCHEMA,
        "content": content,
        "fields": part.fields,
        "tensors": [[t.name, t.shape, t.type_name, t.bytes] for t in part.tensors],
    }
    with contextlib.suppress(OSError):
        whole.write(_path(content), json.dumps(document))

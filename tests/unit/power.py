"""A power cut, played: after so many changes of folders and files nothing more is done."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHANGES = (
    *((Path, name) for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "write_text")),
    *((shutil, name) for name in ("rmtree", "copy2")),
)


@contextlib.contextmanager
def cut_after(changes: int) -> Iterator[None]:
    """Have the power go after so many changes, each of which is whole or not at all."""
    left = iter(range(changes))

    def cut(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any, **named: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return change(*given, **named)

        return changed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        for owner, name in CHANGES:
            patch.setattr(owner, name, cut(getattr(owner, name)))
        yield

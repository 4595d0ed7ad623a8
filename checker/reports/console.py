"""What all tables for a terminal have in common: width, colour, no spaces at the ends of lines."""

from __future__ import annotations

import io
import os
import shutil
import sys

from rich.console import Console, RenderableType


def printed(parts: RenderableType) -> str:
    """Render for standard output: at least 80 columns, coloured when it is a terminal that wants it."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=coloured,
        no_color=not coloured,
        width=max(80, shutil.get_terminal_size((100, 24)).columns),
        highlight=False,
    )
    console.print(parts)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

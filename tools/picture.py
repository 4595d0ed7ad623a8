#!/usr/bin/env python3
"""Draw what `make demo` prints at its end, for the README: tools/picture.py docs/pictures/demo.svg (the lab is up)."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

COLUMNS = 100
BEGINS = "PLAY RECAP"


def main() -> None:
    """Run the demo on a terminal of its own and draw the end of what it prints."""
    root = Path(__file__).parents[1]
    printed = subprocess.run(
        ["script", "--quiet", "--return", "--command", "tools/demo.sh", "/dev/null"],
        cwd=root,
        env=os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    end = printed.replace("\r", "")[printed.replace("\r", "").index(BEGINS) :]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo\n...", style="dim"))
    console.print(Text.from_ansi(re.sub(r"\*{20,}", "*" * 20, end)))
    # Fonts of the viewer's own machine: a picture must not fetch anything.
    without_fonts = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="make demo", code_format=without_fonts)
    Path(sys.argv[1]).write_text(svg.replace("Fira Code", "ui-monospace") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

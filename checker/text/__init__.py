"""The text that measurements read: Lewis Carroll, Alice's Adventures in Wonderland (1865), chapter I; public domain."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).with_name("alice.txt")


def read() -> str:
    """Return the text: about 11,000 characters of English prose in paragraphs."""
    return PATH.read_text(encoding="utf-8")

"""Whether a text can be language: a model that computes wrong says the same token again, or signs. Pure."""

from __future__ import annotations

import re

# Far from what language does, and from what a small model that repeats itself does.
_UNPRINTABLE_SHARE = 0.05
_LETTERS_SHARE = 0.3
_LONG = 40
_ONE_CHARACTER_SHARE = 0.4
_MANY_WORDS = 10
_DISTINCT_WORDS = 4
_ONE_WORD_SHARE = 0.5
# Persian and the scripts of India write words with them, yet Python does not call them printable.
_JOINERS = "\u200c\u200d"


def garbage(text: str) -> str | None:
    """Say why a text cannot be language, None when it can be; what a small model says again and again is language."""
    stripped = text.strip()
    if not stripped:
        return "empty"
    unprintable = sum(
        not (char.isprintable() or char.isspace() or char in _JOINERS) or char == "\ufffd" for char in stripped
    )
    if unprintable > max(2, len(stripped) * _UNPRINTABLE_SHARE):
        return f"{unprintable} of {len(stripped)} characters are not printable"
    letters = [char for char in stripped if char.isalpha()]
    if len(letters) < len(stripped) * _LETTERS_SHARE:
        return f"only {len(letters)} of {len(stripped)} characters are letters"
    if (
        len(stripped) >= _LONG
        and (char := max(set(letters), key=letters.count))
        and (letters.count(char) > len(letters) * _ONE_CHARACTER_SHARE)
    ):
        return f"{letters.count(char)} of {len(letters)} letters are {char!r}"
    words = [word.lower() for word in re.findall(r"[^\W\d_]+", stripped)]
    # Scripts without spaces make few and long words.
    if len(words) >= _MANY_WORDS:
        word = max(set(words), key=words.count)
        if len(set(words)) < _DISTINCT_WORDS or words.count(word) > len(words) * _ONE_WORD_SHARE:
            return f"{words.count(word)} of {len(words)} words are {word!r}"
    return None

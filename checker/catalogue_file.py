"""How `catalogue/models.yml` spells a header, and how the tool changes an entry without touching what people wrote.

In the file a header is short: one number stands for all layers that have the same, and what is 0, false or empty may be
absent. A change is made in the text, where the parser says that the old value stands, so that comments, order and
spelling of all else stay; afterwards the whole file is read again, and nothing is written unless it says exactly what
was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from checker import whole, yaml_file
from checker.header import MAX_LAYERS, Header, HeaderError, from_json

# What kind of value each key of a header has, from the header itself.
_KINDS = get_type_hints(Header)
_DEFAULTS = {field.name: field.default for field in fields(Header) if field.default is not MISSING}
# What may be absent in the file, besides what has a default in `Header`.
_ABSENT: dict[str, Any] = {"expert_bytes": 0, "n_swa": 0, "sliding": False, "n_expert": 0, "n_expert_used": 0}
_LARGEST = 2**63 - 1
# The keys of an entry in the order in which people find them.
_ORDER = ("note", "file", "sha256", "bytes", "huggingface", "url", "parts", "header_derived", "header")
_WIDTH = 119


class CatalogueFileError(Exception):
    """A catalogue that cannot be read or changed; the message names the file and what is wrong."""


def header_of(document: Mapping[str, Any], where: str = "header") -> Header:
    """Return the header that a catalogue spells; HeaderError names key, value and what is expected."""
    n_layer = document.get("n_layer")
    if not _is_whole(n_layer) or not 1 <= int(n_layer or 0) <= MAX_LAYERS:
        raise HeaderError(f"{where}: n_layer is {n_layer!r}, expected a whole number from 1 to {MAX_LAYERS}")
    values: dict[str, Any] = {}
    for key, value in (_ABSENT | dict(document)).items():
        kind = _KINDS.get(key)
        each = get_args(kind)[0] if get_origin(kind) is tuple else None
        if each in (int, bool) and not isinstance(value, list):
            value = [value] * int(n_layer or 0)
        if each in (int, bool):
            right = all(_is(item, each) for item in value)
        elif each:  # pairs of a word and a number
            right = isinstance(value, dict) and all(_is(k, str) and _is(v, int) for k, v in value.items())
        else:
            right = kind is None or _is(value, kind)  # a key that is not known is reported by from_json
        if not right:
            raise HeaderError(f"{where}: {key} is {str(value)[:60]!r}, expected {_expected(kind)}")
        values[str(key)] = value
    return from_json(values, where)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _is(value: object, kind: object) -> bool:
    if kind is int:
        return _is_whole(value)
    return isinstance(value, bool) if kind is bool else isinstance(value, str) and bool(value)


def _expected(kind: object) -> str:
    words: dict[object, str] = {
        int: "a whole number from 0 on",
        bool: "true or false",
        str: "a word",
        tuple[int, ...]: "a whole number from 0 on, or one for each layer",
        tuple[bool, ...]: "true or false, or one for each layer",
    }
    return words.get(kind, "numbers by name")


def spelled(header: Header) -> dict[str, Any]:
    """Return a header as the catalogue spells it."""
    kept: dict[str, Any] = {}
    for key, value in header.to_json().items():
        if get_origin(_KINDS[key]) is tuple and isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if value != _ABSENT.get(key, _DEFAULTS.get(key)) and not (value == {} and _DEFAULTS.get(key) == ()):
            kept[key] = value
    return kept


def changed(text: str, changes: Mapping[str, Mapping[str, Any]], where: str) -> str:
    """Return a catalogue's text with keys of its models set, or taken out where the value is None.

    CatalogueFileError when the text would not say what was meant, or would have lost a comment.
    """
    expected = _loaded(text, where)
    _refuse_templates(changes, where)
    for model, keys in changes.items():
        for key, value in sorted(keys.items(), key=lambda item: _ORDER.index(item[0])):
            text = _set(text, model, key, value, where)
            entry = expected["models"][model]
            if value is None:
                entry.pop(key, None)
            else:
                entry[key] = value
    if _loaded(text, where) != expected:
        raise CatalogueFileError(
            f"{where} is laid out in a way that it cannot be changed by the tool; nothing was changed"
        )
    return text


def _refuse_templates(value: Any, where: str) -> None:
    """Raise CatalogueFileError for text from outside that Ansible would run as a template."""
    if isinstance(value, str) and any(mark in value for mark in ("{{", "{%", "{#")):
        raise CatalogueFileError(f"{where}: {value!r} is no plain text but a template; nothing was changed")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_templates(key, where)
            _refuse_templates(item, where)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_templates(item, where)


def _loaded(text: str, where: str) -> Any:
    try:
        document = yaml_file.parse(text, where)
    except yaml_file.YamlFileError as error:
        raise CatalogueFileError(str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("models"), dict):
        raise CatalogueFileError(f"{where} has no `models:` with an entry for each model")
    return document


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a catalogue's text and its models."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    models: dict[str, Any] = _loaded(text, str(path))["models"]
    return text, models


def write(path: Path, text: str) -> None:
    """Put a text in the place of a file, whole or not at all."""
    try:
        whole.write(path, text, mode=path.stat().st_mode & 0o777)
    except OSError as error:
        raise CatalogueFileError(f"{path} cannot be written: {error.strerror or error}") from error


def _set(text: str, model: str, key: str, value: Any, where: str) -> str:
    """Set one key of one model in the text."""
    entry = _entry(text, model, where)
    pairs = {str(name.value): (name, content) for name, content in entry.value}
    indent = entry.value[0][0].start_mark.column if entry.value else 4
    if key in pairs:
        name, content = pairs[key]
        start, end = name.start_mark.index, _end(content)
        if value is None:  # with its line, or lines
            start, end = text.rindex("\n", 0, start) + 1, _end_of_line(text, end) + 1
            return text[:start] + text[end:]
        return text[:start] + _rendered(key, value, indent) + text[end:]
    if value is None:
        return text
    before = [name for name in _ORDER[: _ORDER.index(key)] if name in pairs]
    after = _end_of_line(text, _end(pairs[before[-1]][1])) if before else _end_of_line(text, entry.start_mark.index)
    return text[:after] + "\n" + " " * indent + _rendered(key, value, indent) + text[after:]


def _entry(text: str, model: str, where: str) -> yaml.MappingNode:
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in ("models", model):
        node = next((content for name, content in node.value if name.value == step), None) if node else None
    entry = node
    if not isinstance(entry, yaml.MappingNode) or entry.flow_style:
        line = f" (line {entry.start_mark.line + 1})" if entry else ""
        raise CatalogueFileError(f"{where}: model {model}{line} must have each of its keys on a line of its own")
    return entry


def _end(node: yaml.Node) -> int:
    """Return where a value ends: the parser's end of a block is after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    index: int = node.end_mark.index
    return index


def _end_of_line(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end


def _rendered(key: str, value: Any, indent: int) -> str:
    """Return `key: value` as YAML; lines after the first are indented, and lists go on under their first entry."""
    if isinstance(value, dict) and any(isinstance(item, list | dict) for item in value.values()):
        inner = " " * (indent + 2)
        return "\n".join([f"{key}:", *(inner + _rendered(name, item, indent + 2) for name, item in value.items())])
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = " " * (indent + 2)
        return "\n".join([f"{key}:", *(f"{inner}- {{{', '.join(_items(item))}}}" for item in value)])
    if isinstance(value, list | dict):
        opening, closing = "[]" if isinstance(value, list) else "{}"
        start = f"{key}: {opening}"
        gap = "\n" + " " * (indent + len(start))
        return f"{start}{gap.join(_lines(_items(value), _WIDTH - indent - len(start)))}{closing}"
    return f"{key}: {_scalar(value)}"


def _lines(items: list[str], width: int) -> list[str]:
    """Join items with commas, as many in a line as there is room for."""
    lines = [""]
    for index, item in enumerate(items):
        item += "," if index < len(items) - 1 else ""
        if lines[-1] and len(lines[-1]) + 1 + len(item) > width:
            lines.append("")
        lines[-1] += f" {item}" if lines[-1] else item
    return lines


def _items(values: list[Any] | dict[str, Any]) -> list[str]:
    if isinstance(values, dict):
        return [f"{_scalar(key)}: {_scalar(value)}" for key, value in values.items()]
    return [_scalar(value) for value in values]


def _scalar(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]

"""YAML that people write: read from a file, and told where it is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

_FASTEST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OF_YAML = (".yml", ".yaml")
# What a vault has encrypted as a whole is no YAML before Ansible decrypts it.
_VAULTED = "$ANSIBLE_VAULT;"


class YamlFileError(Exception):
    """A file that cannot be read as YAML; the message names it, with line and column where they are known."""


class _AnyTag(yaml.SafeLoader):
    """Takes the tags that only Ansible knows, such as `!vault`."""


_AnyTag.add_multi_constructor("!", lambda loader, tag, node: None)


def read(path: Path) -> Any:
    """Read a YAML file; YamlFileError when that cannot be done."""
    return parse(_text(path), str(path), _FASTEST)


def parse(text: str, where: str, loader: Any = yaml.SafeLoader) -> Any:
    """Return what a text says; YamlFileError when it is no YAML, with `where` it is from."""
    try:
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        said = ", ".join(filter(None, (error.context, error.problem)))
        raise YamlFileError(f"{where}{place} is no YAML: {said}") from error
    except yaml.reader.ReaderError as error:
        raise YamlFileError(f"{where} is no YAML: {error.reason}, at character {error.position + 1}") from error
    # Such as a date that no calendar has.
    except ValueError as error:
        raise YamlFileError(f"{where} is no YAML: {error}") from error


def damaged(inventory: Path) -> Iterable[str]:
    """Say of each damaged YAML file of an inventory, a file or a folder, what is wrong with it and where.

    `ansible-inventory` tells the line only of some, and the file only of others.
    """
    base = inventory if inventory.is_dir() else inventory.parent
    own = sorted(base.glob("*")) if inventory.is_dir() else [inventory]
    of_variables = (path for name in ("group_vars", "host_vars") for path in sorted((base / name).rglob("*")))
    for path in (*(each for each in own if each.suffix in _OF_YAML), *filter(_is_of_variables, of_variables)):
        problem = _problem(path) if path.is_file() else None
        if problem and path.name == "decision.yml":
            problem += "; put it back with git, or remove it: then the inventory's order holds"
        if problem:
            yield problem


def _is_of_variables(path: Path) -> bool:
    """Say whether Ansible reads a file of this name below group_vars or host_vars."""
    return path.suffix in (".json", *_OF_YAML) and not path.name.startswith(".")


def _problem(path: Path) -> str | None:
    try:
        text = _text(path)
        document = {} if text.startswith(_VAULTED) else parse(text, str(path), _AnyTag)
    except YamlFileError as error:
        return str(error)
    if document is None or isinstance(document, dict):
        return None
    return f"{path}: a file of variables has to hold `name: value` pairs"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise YamlFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise YamlFileError(f"{path} cannot be read: expected text in UTF-8") from error

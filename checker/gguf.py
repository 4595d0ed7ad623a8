"""Read the header of a GGUF: a local file, the parts of a split one, or a remote one by HTTP range.

Only the header is read, never tensor data: key-values and tensor table. The reader is small and its own, because a
header comes from anywhere: the `gguf` library's reader needs the whole file mapped, builds arrays of every token, and
follows counts of 2^63; its constants (types and their sizes) are used here, and a test holds both readers together.
What is refused is what llama.cpp refuses (ggml/src/gguf.cpp, gguf_init_from_reader, engine 0c1e57098), so that a
damaged header is an error and not a plan.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from math import prod
from pathlib import Path
from typing import Any, Protocol

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from checker.header import Header, HeaderError, Tensor, from_metadata

MIB = 1024 * 1024
VERSIONS = (2, 3)
# Of one file; the largest known headers (400,000 merges in the vocabulary) have about 13 MB.
HEADER_LIMIT = 64 * MIB
# Growing, so that a part of a split model, which has no vocabulary, costs little, and little is read past the end.
_STEPS = (64 * 1024, 256 * 1024, MIB, 2 * MIB)
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_NAME = 63  # GGML_MAX_NAME - 1
_MAX_ELEMENTS = 2**63 - 1
_MAX_KEY = 2**16 - 1  # docs/gguf.md
_MAX_TEXT = 4 * MIB  # of a value; a chat template has some 10 KiB
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_KEPT_NUMBERS = 4096  # of an array; longer ones are no hyperparameters
# The least that one entry takes: a key of one letter with a value of one byte; a nameless tensor of no dimension.
_LEAST_KEY_VALUE, _LEAST_TENSOR = 14, 24
_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class GgufError(HeaderError):
    """A header that cannot be read: the message names file or URL, what was found, and what was expected."""


class Source(Protocol):
    """Bytes of a file, wherever it is; `size` may be known only after the first read."""

    @property
    def where(self) -> str:
        """Name the file for messages."""

    @property
    def size(self) -> int | None:
        """Return the whole file's length in bytes, None while it is not known."""

    def read(self, start: int, length: int) -> bytes:
        """Return bytes from `start` on: at most `length`, at least one, and none only at the end of the file."""


@dataclass(frozen=True)
class Part:
    """What the header of one file says: key-values (those of the tokenizer left out) and tensor table."""

    fields: dict[str, Any]
    tensors: tuple[Tensor, ...]


class LocalFile:
    """A file on this machine as a source."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            if not path.is_file():
                raise GgufError(f"{path} is no file" if path.exists() else f"{path} does not exist")
            self.size: int | None = path.stat().st_size
            self._file = path.open("rb")
        except OSError as error:
            raise GgufError(f"{path} cannot be read: {error.strerror or error}") from error

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start` on."""
        try:
            self._file.seek(start)
            return self._file.read(length)
        except OSError as error:
            raise GgufError(f"{self.where} cannot be read: {error.strerror or error}") from error


class _Cursor:
    """The beginning of a source, read as far as it was asked for, and a place in it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._steps = iter(_STEPS)
        self._step = 0
        self.data = bytearray()
        self.at = 0
        self.what = "the header"

    def begin(self) -> bytes:
        """Read the first bytes, after which the size is known; none when the file is empty."""
        self._step = next(self._steps)
        self.data += self._source.read(0, self._step)
        return bytes(self.data)

    def error(self, problem: str) -> GgufError:
        return GgufError(f"{self._source.where}: {problem}")

    def claim(self, count: int, least: int, what: str) -> None:
        """Refuse a count of entries that cannot be in the file, before anything is done for it."""
        room = min(HEADER_LIMIT, self._source.size or HEADER_LIMIT) - self.at
        if count * least > room:
            raise self.error(
                f"it says that it has {count:,} {what}, which take {count * least:,} bytes at least, but at most "
                f"{max(room, 0):,} follow; expected a whole and undamaged GGUF"
            )

    def step(self, count: int) -> int:
        """Go on by `count` bytes; return where they begin in `data`."""
        start, end = self.at, self.at + count
        if end > len(self.data):
            self.fill(end)
        self.at = end
        return start

    def fill(self, end: int) -> None:
        """Have the first `end` bytes in `data`."""
        while len(self.data) < end:
            size = self._source.size
            if size is not None and end > size:
                raise self.error(
                    f"{self.what} goes on to byte {end:,}, but the file ends at {size:,}; "
                    "expected a whole and undamaged GGUF: was it fetched to its end?"
                )
            if end > HEADER_LIMIT:
                raise self.error(f"{self.what} goes on to byte {end:,}; expected a header of at most {HEADER_LIMIT:,}")
            self._step = next(self._steps, self._step)
            there, last = len(self.data), min(HEADER_LIMIT, size or HEADER_LIMIT)
            piece = self._source.read(there, min(max(self._step, end - there), last - there))
            if not piece:
                raise self.error(f"it ends at byte {len(self.data):,}, in {self.what}; expected a whole GGUF")
            self.data += piece

    def check_end(self, end: int) -> None:
        """Refuse a file that ends before its data, which is up to byte `end`, where its size is known."""
        size = self._source.size
        if size is not None and size < end:
            raise self.error(
                f"it ends {end - size:,} bytes before its last tensor does; "
                "expected a whole GGUF: was it fetched to its end?"
            )

    def u32(self) -> int:
        value: int = _U32.unpack_from(self.data, self.step(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self.data, self.step(8))[0]
        return value

    def text(self, what: str, longest: int) -> bytes:
        length = self.u64()
        if length > longest:
            raise self.error(f"{what} has {length:,} bytes, expected at most {longest:,}")
        start = self.step(length)
        return bytes(self.data[start : start + length])

    def skip_texts(self, count: int) -> None:
        """Go past an array of strings: hundreds of thousands, so without a call for each."""
        at, unpack = self.at, _U64.unpack_from
        for _ in range(count):
            if at + 8 > len(self.data):
                self.fill(at + 8)
            at += 8 + unpack(self.data, at)[0]
            if at > len(self.data):
                if at - len(self.data) > _MAX_TEXT:
                    raise self.error(f"{self.what} has a string of over {_MAX_TEXT:,} bytes")
                self.fill(at)
        self.at = at


def read_part(source: Source) -> Part:
    """Read the header of one file; GgufError when it is none that llama.cpp would load."""
    cursor = _Cursor(source)
    beginning = cursor.begin()
    if not beginning.startswith(b"GGUF"):
        if not beginning:
            raise cursor.error("it is empty, expected a GGUF")
        shown = beginning[:60].decode("utf-8", errors="replace")
        raise cursor.error(f"it is no GGUF: it begins with {shown!r}, expected 'GGUF'")
    cursor.at = 4
    _check_version(cursor, cursor.u32())
    n_tensors, n_key_values = cursor.u64(), cursor.u64()
    cursor.claim(n_key_values, _LEAST_KEY_VALUE, "key-values")
    cursor.claim(n_tensors, _LEAST_TENSOR, "tensors")
    fields = _read_fields(cursor, n_key_values)
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment is {alignment!r}, expected a power of two")
    kept = {key: value for key, value in fields.items() if not key.startswith("tokenizer.")}
    return Part(kept, tuple(_read_tensors(cursor, n_tensors, alignment)))


def _check_version(cursor: _Cursor, version: int) -> None:
    if version & 0xFFFF == 0 and version:
        raise cursor.error("it is a GGUF for big-endian machines; expected a little-endian one")
    if version not in VERSIONS:
        raise cursor.error(f"it is a GGUF of version {version}, expected {' or '.join(map(str, VERSIONS))}")


def _read_fields(cursor: _Cursor, count: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for index in range(count):
        cursor.what = f"key-value {index + 1} of {count}"
        try:
            key = cursor.text(f"the key of {cursor.what}", _MAX_KEY).decode("utf-8")
        except UnicodeDecodeError as error:
            raise cursor.error(f"the key of {cursor.what} is not UTF-8; the header is damaged") from error
        if not key or key in fields:
            raise cursor.error(f"key {key!r} stands there twice" if key else f"the key of {cursor.what} is empty")
        cursor.what = f"the value of {key[:80]}"
        fields[key] = _read_value(cursor)
    return fields


def _kind(cursor: _Cursor) -> GGUFValueType:
    number = cursor.u32()
    try:
        return GGUFValueType(number)
    except ValueError as error:
        raise cursor.error(f"{cursor.what} is of type {number}, expected 0 to {max(GGUFValueType)}") from error


def _read_value(cursor: _Cursor) -> Any:
    """Read one value; an array of strings, or one too long for a hyperparameter, is passed by and gives None."""
    kind = _kind(cursor)
    if kind == GGUFValueType.STRING:
        return cursor.text(cursor.what, _MAX_TEXT).decode("utf-8", errors="replace")
    if kind != GGUFValueType.ARRAY:
        return struct.unpack_from(f"<{_FORMATS[kind]}", cursor.data, cursor.step(struct.calcsize(_FORMATS[kind])))[0]
    kind, count = _kind(cursor), cursor.u64()
    if kind == GGUFValueType.ARRAY:
        raise cursor.error(f"{cursor.what} is an array of arrays, expected numbers or strings")
    if kind == GGUFValueType.STRING:
        cursor.claim(count, 8, f"strings in {cursor.what}")
        cursor.skip_texts(count)
        return None
    each = struct.calcsize(f"<{_FORMATS[kind]}")
    cursor.claim(count, each, f"numbers in {cursor.what}")
    start = cursor.step(count * each)
    if count > _KEPT_NUMBERS:
        return None
    return list(struct.unpack_from(f"<{count}{_FORMATS[kind]}", cursor.data, start))


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> list[Tensor]:
    tensors: list[Tensor] = []
    names: set[str] = set()
    expected_offset = 0
    for index in range(count):
        cursor.what = f"tensor {index + 1} of {count}"
        name = cursor.text(f"the name of {cursor.what}", _MAX_NAME).decode("utf-8", errors="replace")
        if not name or name in names:
            raise cursor.error(f"tensor {name} stands there twice" if name else f"{cursor.what} has no name")
        names.add(name)
        dimensions = cursor.u32()
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise cursor.error(f"tensor {name} has {dimensions:,} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        shape = struct.unpack_from(f"<{dimensions}Q", cursor.data, cursor.step(8 * dimensions))
        tensor = _tensor(cursor, name, shape, cursor.u32())
        offset = cursor.u64()
        # The table is in the order of the data and without a gap, so this finds a wrong shape or type as well.
        if offset != expected_offset:
            raise cursor.error(f"the data of tensor {name} is at {offset:,}, expected {expected_offset:,}")
        expected_offset = _padded(offset + tensor.bytes, alignment)
        tensors.append(tensor)
    if tensors:
        cursor.check_end(_padded(cursor.at, alignment) + offset + tensor.bytes)
    return tensors


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], number: int) -> Tensor:
    if min(shape) < 1 or prod(shape) > _MAX_ELEMENTS:
        raise cursor.error(f"tensor {name} has shape {list(shape)}, expected dimensions of 1 to 2^63 elements in all")
    try:
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise cursor.error(
            f"tensor {name} is of ggml type {number}, which gguf {version_of('gguf')} does not know; "
            f"expected one of 0 to {max(GGMLQuantizationType)}: a newer gguf may know it"
        ) from error
    if shape[0] % block:
        raise cursor.error(f"tensor {name} has rows of {shape[0]:,}, expected a multiple of {block} ({kind.name})")
    return Tensor(name, shape, kind.name, prod(shape) // block * size)


def part_names(name: str) -> list[str]:
    """Name all files of the model that `name` is a part of, in order; a file that is not split is its only part."""
    match = _PART.search(name)
    if not match:
        return [name]
    stem, count = name[: match.start()], int(match[2])
    if not 1 <= int(match[1]) <= count:
        raise GgufError(f"{name}: there is no part {int(match[1])} of {count}; expected 1 to {count}")
    return [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def part_urls(url: str) -> list[str]:
    """Do for a URL what `part_names` does for a name."""
    path, mark, query = url.partition("?")
    return [f"{name}{mark}{query}" for name in part_names(path)]


def joined(parts: Sequence[Part], where: str) -> Header:
    """Return what the parts of one model say together; `where` names the model."""
    first, tensors = parts[0], [tensor for part in parts for tensor in part.tensors]
    expected = first.fields.get("split.count", 1) or 1
    if expected != len(parts):
        raise GgufError(
            f"{where}: split.count says {expected} parts, but {len(parts)} were read; expected a name that ends in "
            f"-00001-of-{expected if isinstance(expected, int) else 1:05}.gguf, with the other parts beside it"
        )
    for number, part in enumerate(parts):
        if part.fields.get("split.no", number) != number:
            raise GgufError(
                f"{where}: part {number + 1} says split.no {part.fields['split.no']}, expected {number}; are the files "
                "in order, and all of one model?"
            )
    total = first.fields.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise GgufError(
            f"{where}: split.tensors.count says {total} tensors, but the parts have {len(tensors)}; "
            "expected all parts of one model"
        )
    return from_metadata(first.fields, tensors, where)


def read_header(source: str | Path) -> Header:
    """Read a model's header from a path or URL of its file, or of any part of it; HeaderError says why that fails."""
    if isinstance(source, str) and re.match(r"https?://", source, re.IGNORECASE):
        from checker import hub

        return joined(hub.read_parts(part_urls(source)), hub.shown(source))
    path = Path(source)
    parts = []
    for name in part_names(path.name):
        with LocalFile(path.with_name(name)) as file:
            parts.append(read_part(file))
    return joined(parts, str(source))

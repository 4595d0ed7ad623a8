"""Which cards a program has machine code for, from the program itself: its CUDA fat binaries, without NVIDIA's tools.

A program that nvcc compiled has a section `.nv_fatbin`: fat binaries, one for each source, each a header (u32 magic
0xBA55ED50, u16 version, u16 size of the header, u64 size of what follows) and entries (u16 kind: 1 PTX, 2 cubin; u16
version; u32 size of the entry's header; u64 size of what follows it; ...; at byte 28 u32 the architecture, 61 for
sm_61; at byte 40 u64 flags, of which one is set for sm_90a and not for sm_90). What is compressed is the payload, never
a header. NVIDIA documents none of this; the layout was read from programs of CUDA 12.4, 13.0 and 13.5, and agrees with
`cuobjdump --list-elf` on them, which calls a family's cubin (sm_120f) by the plain name, too. The empty cubin of a
device link it calls sm_90, whose entry here says sm_90a.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from checker.cuda import Cubin

_SECTION = b".nv_fatbin"
_MAGIC = 0xBA55ED50
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI8xQ")
_CUBIN = 2
_SPECIFIC = 0x100000


class FatbinError(Exception):
    """A file that is no 64-bit ELF program, or whose fat binaries are laid out in another way than is known here."""


def read_cubins(program: Path) -> dict[Cubin, int]:
    """Count the cubins in a program by architecture; empty when it holds none; FatbinError."""
    with program.open("rb") as file:
        try:
            return count_cubins(_section(file, str(program)))
        except (struct.error, IndexError):
            raise FatbinError(f"{program} is cut off, or no program as known here") from None


def count_cubins(section: bytes) -> dict[Cubin, int]:
    """Count the cubins in the content of a section .nv_fatbin by architecture, the oldest first; FatbinError."""
    return dict(sorted(Counter(_cubins(section)).items()))


def _cubins(section: bytes) -> Iterator[Cubin]:
    at = 0
    while at + _HEADER.size <= len(section):
        magic, _, header_size, size = _HEADER.unpack_from(section, at)
        if magic == 0:
            # Between two fat binaries lies padding.
            at += 8
            continue
        end = at + header_size + size
        if magic != _MAGIC or header_size < _HEADER.size or end > len(section):
            raise FatbinError(f"no fat binary begins at byte {at} of .nv_fatbin (magic {magic:#x})")
        at += header_size
        while at < end:
            if at + _ENTRY.size > end:
                raise FatbinError(f"the entry at byte {at} of .nv_fatbin is cut off")
            kind, _, entry_size, payload, arch, flags = _ENTRY.unpack_from(section, at)
            if entry_size < _ENTRY.size:
                raise FatbinError(f"the entry at byte {at} of .nv_fatbin has a header of {entry_size} bytes")
            if kind == _CUBIN:
                yield Cubin(arch, bool(flags & _SPECIFIC))
            at += entry_size + payload
        at = -(-end // 8) * 8


def _section(file: BinaryIO, name: str) -> bytes:
    """Return the content of .nv_fatbin, b"" when there is none (ELF-64: System V ABI, chapter 4)."""
    header = file.read(64)
    if header[:5] != b"\x7fELF\x02" or len(header) < 64:
        raise FatbinError(f"{name} is no 64-bit ELF program")
    table, entry_size, count, names_index = struct.unpack_from("<Q10xHHH", header, 0x28)
    file.seek(table)
    headers = file.read(entry_size * count)
    sections = [struct.unpack_from("<I20xQQ", headers, index * entry_size) for index in range(count)]
    if not sections:
        return b""
    _, names_at, names_size = sections[names_index]
    file.seek(names_at)
    names = file.read(names_size)
    for name_at, at, size in sections:
        if names[name_at : name_at + len(_SECTION) + 1] == _SECTION + b"\0":
            file.seek(at)
            return file.read(size)
    return b""

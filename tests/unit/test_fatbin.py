"""Fat binaries: the cubins of a program are counted, and what is laid out in another way is refused, not guessed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from checker import fatbin
from checker.cuda import Cubin

PTX, CUBIN = 1, 2
# The flags of entries that nvcc 12.4, 13.0 and 13.5 wrote for sm_90, sm_90a and sm_120f.
PLAIN, SPECIFIC, FAMILY = 0x11, 0x100011, 0x1200011


def fat_binary(*entries: tuple[int, int, int], flags: int = PLAIN) -> bytes:
    """Return a fat binary as nvcc lays it out, of entries (kind, architecture, bytes of payload)."""
    body = b"".join(header(kind, arch, 64, size, flags) + bytes(16) + b"\xab" * size for kind, arch, size in entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def header(kind: int, arch: int, size: int, payload: int, flags: int = PLAIN) -> bytes:
    """Return the first 48 bytes of an entry's header."""
    return struct.pack("<HHIQ12xI8xQ", kind, 0x101, size, payload, arch, flags)


def program(path: Path, **sections: bytes) -> Path:
    """Write a 64-bit ELF file with these sections (`_` stands for the dot)."""
    names = b"\0" + b"".join(b"." + name.encode() + b"\0" for name in [*sections, "shstrtab"])
    content, headers = b"", [bytes(64)]
    for name, data in [*sections.items(), ("shstrtab", names)]:
        name_at = names.index(b"." + name.encode() + b"\0")
        headers.append(struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, 64 + len(content), len(data), 0, 0, 8, 0))
        content += data
    counts = (64, 0, 0, 64, len(headers), len(headers) - 1)
    elf = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 0, 64 + len(content), 0, *counts)
    path.write_bytes(elf + content + b"".join(headers))
    return path


def test_cubins_are_counted_by_architecture_and_ptx_is_none() -> None:
    one = fat_binary((CUBIN, 61, 40), (CUBIN, 86, 8), (PTX, 86, 16))
    two = fat_binary((CUBIN, 61, 24), (CUBIN, 120, 8))
    assert fatbin.count_cubins(one + bytes(16) + two) == {Cubin(61): 2, Cubin(86): 1, Cubin(120): 1}
    assert fatbin.count_cubins(b"") == {}


def test_machine_code_for_one_card_alone_is_told_from_that_of_a_family() -> None:
    section = b"".join(
        fat_binary((CUBIN, arch, 8), flags=flags)
        for arch, flags in ((120, FAMILY), (120, SPECIFIC), (90, SPECIFIC), (90, PLAIN))
    )
    assert [str(cubin) for cubin in fatbin.count_cubins(section)] == ["sm_90", "sm_90a", "sm_120", "sm_120a"]


def test_a_program_is_read_by_its_section(tmp_path: Path) -> None:
    with_code = program(tmp_path / "cuda", text=b"\x90" * 24, nv_fatbin=fat_binary((CUBIN, 52, 8)), data=bytes(8))
    without = program(tmp_path / "cpu", text=b"\x90" * 24, nv_fatbin_other=b"\xff" * 16)
    assert fatbin.read_cubins(with_code) == {Cubin(52): 1}
    assert fatbin.read_cubins(without) == {}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (b"\x01" * 32, "no fat binary begins at byte 0"),
        (fat_binary((CUBIN, 61, 8))[:-8], "no fat binary begins at byte 0"),
        (struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 8) + bytes(8), "is cut off"),
        (struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + header(CUBIN, 61, 8, 0) + bytes(16), "a header of 8 bytes"),
    ],
)
def test_another_layout_is_refused(section: bytes, says: str) -> None:
    with pytest.raises(fatbin.FatbinError, match=says):
        fatbin.count_cubins(section)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n" * 10)
    with pytest.raises(fatbin.FatbinError, match="is no 64-bit ELF program"):
        fatbin.read_cubins(tmp_path / "script")


def test_a_program_that_is_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = program(tmp_path / "cuda", text=b"\x90" * 24, nv_fatbin=fat_binary((CUBIN, 52, 8)))
    content = whole.read_bytes()
    # Of the last section's header nothing is read after its place and size.
    for size in range(len(content) - 24):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(fatbin.FatbinError):
            fatbin.read_cubins(tmp_path / "cut")


def test_a_table_of_sections_without_names_is_refused(tmp_path: Path) -> None:
    content = bytearray(program(tmp_path / "cuda", nv_fatbin=fat_binary((CUBIN, 52, 8))).read_bytes())
    struct.pack_into("<H", content, 0x3E, 99)
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(fatbin.FatbinError, match="is cut off, or no program as known here"):
        fatbin.read_cubins(tmp_path / "odd")

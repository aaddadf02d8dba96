"""What a shared library says about itself: format, processor, libraries it needs, symbols it takes and gives.

Reads 64-bit little-endian ELF, Mach-O and PE files, as far as the checks of `crossbuild` need them.
Sources: System V ABI, chapters 4 and 5; Apple's <mach-o/loader.h>, <mach-o/nlist.h>; Microsoft's "PE Format".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Binary", "read_binary"]


@dataclass(frozen=True, slots=True)
class Binary:
    """One shared library."""

    format: str
    """ "elf", "mach-o" or "pe"."""
    machine: str
    """ "x86_64" or "aarch64"; else the format's own number."""
    needed: tuple[str, ...]
    """Libraries that are loaded with it."""
    exports: tuple[str, ...]
    """Symbols that others can use, sorted."""
    imports: tuple[str, ...]
    """Symbols that others must have, sorted; weak ones, which may be absent, are not among them."""


def read_binary(data: bytes) -> Binary:
    """Read a shared library.

    Args:
        data: the whole file.
    Raises:
        ValueError: not one of the three formats, not 64-bit little-endian, or damaged.
    """
    try:
        if data[:6] == b"\x7fELF\x02\x01":
            return _elf(data)
        if data[:4] == b"\xcf\xfa\xed\xfe":
            return _mach_o(data)
        if data[:2] == b"MZ":
            return _pe(data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged shared library ({error!r})") from error
    raise ValueError(f"not a 64-bit shared library: it begins with {data[:6]!r}")


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _binary(
    kind: str, machine: str, needed: list[str], exports: set[str], imports: set[str] | None = None
) -> Binary:
    return Binary(kind, machine, tuple(needed), tuple(sorted(exports)), tuple(sorted(imports or ())))


def _elf(data: bytes) -> Binary:
    machine = struct.unpack_from("<H", data, 18)[0]
    (table,) = struct.unpack_from("<Q", data, 40)  # e_shoff
    size, count = struct.unpack_from("<HH", data, 58)
    sections = []  # type, offset, bytes, index of its string table
    for index in range(count):
        kind, offset, length, link = struct.unpack_from("<4xI16xQQI", data, table + index * size)
        sections.append((kind, offset, length, link))
    needed: list[str] = []
    exports, imports = set(), set()
    for kind, offset, length, link in sections:
        if kind == 6:  # SHT_DYNAMIC
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == 1:  # DT_NEEDED
                    needed.append(_text(data, sections[link][1] + value))
        elif kind == 11:  # SHT_DYNSYM; its first entry is empty
            for at in range(offset + 24, offset + length, 24):
                name, info, section = struct.unpack_from("<IBxH", data, at)
                symbol = _text(data, sections[link][1] + name)
                binding = info >> 4  # 0 local, 1 global, 2 weak
                if section and binding:
                    exports.add(symbol)
                elif binding == 1:
                    imports.add(symbol)
    return _binary("elf", {62: "x86_64", 183: "aarch64"}.get(machine, hex(machine)), needed, exports, imports)


def _mach_o(data: bytes) -> Binary:
    machine, count = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 16)[0]
    needed: list[str] = []
    exports: set[str] = set()
    imports: set[str] = set()
    at = 32
    for _ in range(count):
        kind, size = struct.unpack_from("<II", data, at)
        if kind in (0xC, 0x80000018, 0x8000001F):  # LC_LOAD_DYLIB, _WEAK_, LC_REEXPORT_DYLIB
            needed.append(_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        elif kind == 2:  # LC_SYMTAB
            symbols, n_symbols, strings = struct.unpack_from("<III", data, at + 8)
            for entry in range(symbols, symbols + 16 * n_symbols, 16):
                name, symbol_kind, description = struct.unpack_from("<IBxH", data, entry)
                if symbol_kind == 1 and not description & 0x40:  # N_EXT and N_UNDF; N_WEAK_REF
                    imports.add(_text(data, strings + name).removeprefix("_"))
        elif kind in (0x22, 0x80000022):  # LC_DYLD_INFO, _ONLY
            exports |= set(_exported(data, *struct.unpack_from("<II", data, at + 40)))
        elif kind == 0x80000033:  # LC_DYLD_EXPORTS_TRIE
            exports |= set(_exported(data, *struct.unpack_from("<II", data, at + 8)))
        at += size
    known = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
    return _binary("mach-o", known.get(machine, hex(machine)), needed, exports, imports)


def _exported(data: bytes, start: int, size: int) -> Iterator[str]:
    """Names in a trie of exports: a node is the size of its entry, the entry, then edges to further nodes."""
    nodes = [(0, "")] if size else []
    while nodes:
        offset, name = nodes.pop()
        own, at = _uleb128(data, start + offset)
        if own:
            yield name.removeprefix("_")
        at += own
        n_edges = data[at]
        at += 1
        for _ in range(n_edges):
            edge = _text(data, at)
            child, at = _uleb128(data, at + len(edge.encode()) + 1)
            if child <= offset:
                raise ValueError("damaged shared library: its list of exports goes in circles")
            nodes.append((child, name + edge))


def _uleb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the offset behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _pe(data: bytes) -> Binary:
    (start,) = struct.unpack_from("<I", data, 0x3C)
    if data[start : start + 4] != b"PE\0\0" or data[start + 24 : start + 26] != b"\x0b\x02":
        raise ValueError("not a 64-bit Windows library")
    machine, n_sections = struct.unpack_from("<HH", data, start + 4)
    (options,) = struct.unpack_from("<H", data, start + 20)
    table = start + 24 + options
    sections = [struct.unpack_from("<8xIIII", data, table + 40 * index) for index in range(n_sections)]

    def place(address: int) -> int:
        """File offset of a relative virtual address."""
        for size, begin, stored, offset in sections:
            if begin <= address < begin + max(size, stored):
                return int(address - begin + offset)
        raise ValueError(f"no section holds address {address:#x}")

    (exported,) = struct.unpack_from("<I", data, start + 24 + 112)
    (imported,) = struct.unpack_from("<I", data, start + 24 + 120)
    exports: set[str] = set()
    if exported:
        (n_names,) = struct.unpack_from("<I", data, place(exported) + 24)
        (names,) = struct.unpack_from("<I", data, place(exported) + 32)
        for index in range(n_names):
            (name,) = struct.unpack_from("<I", data, place(names) + 4 * index)
            exports.add(_text(data, place(name)))
    needed = list(_imported_libraries(data, place(imported), place)) if imported else []
    return _binary("pe", {0x8664: "x86_64", 0xAA64: "aarch64"}.get(machine, hex(machine)), needed, exports)


def _imported_libraries(data: bytes, at: int, place: Callable[[int], int]) -> Iterator[str]:
    while name := struct.unpack_from("<I", data, at + 12)[0]:
        yield _text(data, place(name))
        at += 20

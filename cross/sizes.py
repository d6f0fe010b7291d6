#!/usr/bin/env python3
"""What ferrule-edge is made of, part by part, against a budget: cross/sizes.py TARGET...

Reads dist/TARGET/ferrule-edge (as it is shipped) and dist/TARGET/ferrule-edge.symbols (the same before it was stripped); prints a table of KiB
a part and exits with 1 when a part or the file is over its budget (cross/budget.toml). A function belongs to the crate that it is
written in, generic ones too; what has no symbol (texts, tables, relocations, unwinding) is a part of its own, by section.
"""

import collections
import pathlib
import re
import struct
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
STT_OBJECT, STT_FUNC, STT_FILE = 1, 2, 4
SHF_ALLOC, SHT_NOBITS = 2, 8

# A crate in a mangled name: Rust's old manner counts the crate's letters after _ZN, its new one writes C, a hash and the crate.
OLD = re.compile(r"^_ZN(?:\d+_\$LT\$(?:[^a-zA-Z]|u[0-9a-f]{2}|\$\w+\$|mut )*?(?:dyn\$u20\$)?)?(\d*)([a-z_][a-z0-9_]*)")
NEW = re.compile(r"C(?:s[0-9A-Za-z]*_)(\d+)_?([A-Za-z_][A-Za-z0-9_]*)")
STD = {"core", "alloc", "std", "compiler_builtins", "gimli", "addr2line", "miniz_oxide", "object", "rustc_demangle", "hashbrown",
       "panic_unwind", "unwind", "memchr", "std_detect", "adler2"}
C_FILES = {"sqlite3.c": "sqlite"}


def symbols(path):
    """Sections as (name, size) and symbols as (name, file, section, size) of an ELF file of either width, little-endian."""
    data = path.read_bytes()
    assert data[:4] == b"\x7fELF" and data[5] == 1, f"{path} is no little-endian ELF file"
    wide = data[4] == 2
    if wide:
        offset, = struct.unpack_from("<Q", data, 40)
        size, count, names = struct.unpack_from("<HHH", data, 58)
        header, symbol = "<IIQQQQIIQQ", "<IBBHQQ"
    else:
        offset, = struct.unpack_from("<I", data, 32)
        size, count, names = struct.unpack_from("<HHH", data, 46)
        header, symbol = "<IIIIIIIIII", "<IIIBBH"
    sections = [struct.unpack_from(header, data, offset + index * size) for index in range(count)]

    def text(table, at):
        start = sections[table][4] + at
        return data[start:data.index(b"\0", start)].decode()

    named = [(text(names, s[0]), s[5] if s[2] & SHF_ALLOC and s[1] != SHT_NOBITS else 0) for s in sections]
    found = []
    for s in sections:
        if s[1] != 2:  # SHT_SYMTAB
            continue
        file = ""
        for at in range(s[4], s[4] + s[5], struct.calcsize(symbol)):
            if wide:
                name, info, _, section, value, length = struct.unpack_from(symbol, data, at)
            else:
                name, value, length, info, _, section = struct.unpack_from(symbol, data, at)
            kind, binding = info & 15, info >> 4
            if kind == STT_FILE:
                file = text(s[6], name)
            elif kind in (STT_OBJECT, STT_FUNC) and 0 < section < count and length:
                found.append((text(s[6], name), file if binding == 0 else "", section, value & ~1 if kind == STT_FUNC else value, length))
    return named, found


def part(name, file):
    """The part that a symbol belongs to."""
    if name.startswith("_R"):
        match = NEW.search(name)
    elif name.startswith("_ZN"):
        match = OLD.match(name)
    else:
        match = None
    if match:
        digits, crate = match.groups()
        crate = crate[: int(digits)] if digits else crate
        crate = crate.split("$")[0].split("..")[0]
        return "std" if crate in STD else crate
    if name.startswith("sqlite3") or pathlib.Path(file).name in C_FILES:
        return "sqlite"
    if "ring_core" in name or "curve25519" in file or "/crypto/" in file:
        return "ring"
    return "C, musl"


def measure(path):
    """Bytes a part of the loaded file."""
    sections, found = symbols(path)
    parts = collections.Counter()
    left = {index: size for index, (_, size) in enumerate(sections) if size}
    seen = set()
    for name, file, section, value, length in found:
        # Several names of one function count once.
        if section in left and (section, value) not in seen:
            seen.add((section, value))
            length = min(length, left[section])
            left[section] -= length
            parts[part(name, file)] += length
    for index, size in left.items():
        parts[f"({sections[index][0]})"] += size
    return parts


def report(target, budget):
    """Prints one target's table; whether it is within its budget."""
    folder = HERE.parent / "dist" / target
    total = (folder / "ferrule-edge").stat().st_size
    parts = measure(folder / "ferrule-edge.symbols")
    groups = collections.Counter()
    for name, size in parts.items():
        group = next((group for group, one in budget["part"].items() if name in one["crates"]), "rest")
        groups[group] += size
    may = budget.get("file_mib_" + target.split("-")[0], budget["file_mib"])
    print(f"{target}: {total} bytes, {total / 2**20:.2f} MiB of {may} MiB; the goal is {budget['goal_mib']} MiB")
    fine = total <= may * 2**20
    if not fine:
        print("  OVER: the file is larger than it may be")
    for group, size in groups.most_common():
        part = budget["part"].get(group, {"kib": budget["rest_kib"]})
        limit = part.get("kib_32", part["kib"]) if target.startswith("arm") else part["kib"]
        over = size > limit * 1024
        fine = fine and not over
        print(f"  {group:24} {size / 1024:8.0f} KiB of {limit:5} {'  OVER' if over else ''}")
        if "--all" in sys.argv:
            inside = [(name, size) for name, size in parts.items()
                      if name in budget["part"].get(group, {"crates": []})["crates"] or (group == "rest" and not any(name in one["crates"] for one in budget["part"].values()))]
            for name, size in sorted(inside, key=lambda one: -one[1])[:40]:
                print(f"      {name:28} {size / 1024:8.1f}")
    return fine


def main():
    """All targets that are named."""
    targets = [name for name in sys.argv[1:] if not name.startswith("--")]
    if not targets:
        sys.exit("usage: cross/sizes.py [--all] TARGET...")
    budget = tomllib.loads((HERE / "budget.toml").read_text())
    if not all([report(target, budget) for target in targets]):
        sys.exit("over budget: see cross/budget.toml")


if __name__ == "__main__":
    main()

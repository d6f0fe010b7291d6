#!/usr/bin/env python3
"""How large ferrule-edge is, as files and in memory, into docs/footprint.md: cross/footprint.py < OUTPUT

OUTPUT is what tests/tests/footprint.rs prints (`make footprint` runs it with a backlog of a million); the files are those in dist/. Prints the
page, too.
"""

import datetime
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
TARGETS = [("aarch64", "aarch64-unknown-linux-musl"), ("ARMv7", "armv7-unknown-linux-musleabihf"), ("ARMv6", "arm-unknown-linux-musleabihf"),
           ("x86_64", "x86_64-unknown-linux-musl")]
FILE_GOAL, IDLE_GOAL, LOADED_GOAL = 8, 8, 32


def against(size, goal):
    """A size in MiB, and whether it is within its goal."""
    return f"{size / 2**20:.2f} MiB | {goal} MiB, {'met' if size <= goal * 2**20 else 'MISSED'}"


def git(*args):
    return subprocess.run(["git", "-C", str(ROOT), *args], check=True, capture_output=True, text=True).stdout.strip()


def main():
    """The page."""
    output = sys.stdin.read()
    told = re.findall(r"footprint: (.*): (\d+) KiB, (\d+) KiB its own", output)
    parts = re.search(r"footprint of idle: (.*)", output)
    if len(told) < 4:
        sys.exit(f"cross/footprint.py: {len(told)} of 4 figures of memory; see what the test says above")
    cpu = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    commit = git("rev-parse", "--short=10", "HEAD") + (", changed" if git("status", "--porcelain", "--untracked-files=no", ":!docs/footprint.md") else "")
    now = datetime.datetime.now(datetime.timezone.utc)
    page = ["# Footprint", "",
            "Made by `make footprint`, which needs what `make cross` built; do not edit.", "",
            f"Commit {commit}, {now:%Y-%m-%dT%H:%MZ}, {cpu}, load average {os.getloadavg()[0]:.2f} at the end.", "",
            "## Files", "", "The profile `edge` without `jq` and `fast-regex`, static, stripped ([cross/README.md](../cross/README.md)). What they are made of: "
            "`cross/sizes.py --all TARGET`.", "",
            "| target | bytes | | goal |", "| --- | --- | --- | --- |"]
    for name, target in TARGETS:
        file = ROOT / "dist" / target / "ferrule-edge"
        page.append(f"| {name} | {file.stat().st_size:,} | {against(file.stat().st_size, FILE_GOAL)} |" if file.is_file() else f"| {name} | not built | | |")
    page += ["", "## Memory", "",
             "Resident memory (VmRSS) of the x86_64 file of above, which has the allocator and the C library of the ARM files and runs without an emulator; one worker. *Its own* is what is not "
             "pages of its file: those the kernel may drop, and reads again when they are needed. While messages come in, part of it is what is under way between "
             "500 clients and the disk, which differs from run to run.", "",
             "| | resident | goal | its own |", "| --- | --- | --- | --- |"]
    for what, resident, own in told:
        size = int(resident) * 1024
        goal = LOADED_GOAL if "messages" in what else IDLE_GOAL if what == "idle" else None
        words = re.sub(r"\d{4,}", lambda digits: f"{int(digits[0]):,}", what)
        page.append(f"| {words} | {against(size, goal) if goal else f'{size / 2**20:.2f} MiB | '} | {int(own) / 1024:.2f} MiB |")
    if parts:
        page += ["", f"Idle, by the kernel's list of mappings: {parts[1]}. Code, constants and most of data are pages of the file. Around each that is used the kernel maps "
                 "what its cache has of its neighbours, so that nearly the whole file counts, more or less of it as it lies in the cache. The file and *its own* together "
                 "are the most that it can be."]
    text = "\n".join(page) + "\n"
    (ROOT / "docs" / "footprint.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()

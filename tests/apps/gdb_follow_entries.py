# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside gdb, attached to a process: follows function entries to the code that threads reach.

QUESTION and ANSWER are paths. The answer is {"threads": {tid: gs base}, "functions": [...]}, where
each function has its jumps, the table cell of row 0 (null: the entry leads to none), what each
thread reaches by its own row, whether that is executable and anonymous memory, and whether the
entry's bytes are those of the file.
"""

import json
import pathlib
import re
import struct

import gdb

MASK = (1 << 64) - 1
MOST_JUMPS = 6


def memory(address, length):
    return gdb.selected_inferior().read_memory(address, length).tobytes()


def follow(entry):
    """The addresses jumped to, and the cell that the last jump reads relative to the GS base.

    gdb's disassembler says what a jump is, so no form of it has to be known here.
    """
    architecture = gdb.selected_inferior().architecture()
    at, jumps = entry, []
    for _ in range(MOST_JUMPS):
        text = architecture.disassemble(at)[0]["asm"]
        by_base = re.search(r"\bjmp\s+\*%gs:.*\(%rip\)\s*# (0x[0-9a-f]+)", text)
        by_memory = re.search(r"\bjmp\s+\*0x0\(%rip\)\s*# (0x[0-9a-f]+)", text)
        direct = re.search(r"\bjmp\s+(0x[0-9a-f]+)", text)
        if by_base:
            return jumps, int(by_base[1], 16)
        if by_memory:
            at = struct.unpack("<Q", memory(int(by_memory[1], 16), 8))[0]
        elif direct:
            at = int(direct[1], 16)
        else:
            break
        jumps.append(at)
    return jumps, None


def mappings():
    """(start, end, permissions, offset, path) of every mapping, as gdb lists them."""
    rows = []
    for line in gdb.execute("info proc mappings", to_string=True).splitlines():
        match = re.match(
            r"\s*(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+0x[0-9a-f]+\s+(0x[0-9a-f]+)\s+([-rwxsp]{4})\s*(.*)",
            line,
        )
        if match:
            start, end, offset, permissions, path = match.groups()
            rows.append((int(start, 16), int(end, 16), permissions, int(offset, 16), path.strip()))
    return rows


def mapping_of(address, rows):
    for row in rows:
        if row[0] <= address < row[1]:
            return row
    return (0, 0, "----", 0, "")


def as_in_file(address, rows, length=5):
    """Whether the bytes there are the file's own, read through the process' own root."""
    # A page that was replaced is anonymous; the object's mapping before it tells the offset.
    below = [row for row in rows if row[0] <= address and row[4].startswith("/")]
    start, _, _, offset, path = max(below, default=(0, 0, "----", 0, ""))
    root = f"/proc/{gdb.selected_inferior().pid}/root"
    try:
        with open(root + path, "rb") as file:
            file.seek(offset + address - start)
            return file.read(length) == memory(address, length)
    except OSError:
        return False


def main():
    rows = mappings()
    bases = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        bases[str(thread.ptid[1])] = int(gdb.parse_and_eval("$gs_base")) & MASK
    functions = []
    for wanted in json.loads(pathlib.Path(QUESTION).read_text()):  # noqa: F821 - set by the caller
        jumps, cell = follow(wanted["entry"])
        reached = {}
        if cell is not None:
            for tid, base in bases.items():
                reached[tid] = struct.unpack("<Q", memory((cell + base) & MASK, 8))[0]
        kinds = {address: mapping_of(address, rows) for address in set(reached.values())}
        functions.append(
            {
                "name": wanted["name"],
                "entry": wanted["entry"],
                "jumps": jumps,
                "cell": cell,
                "threads": reached,
                "executable": {hex(address): "x" in row[2] for address, row in kinds.items()},
                "anonymous": {hex(address): row[4] == "" for address, row in kinds.items()},
                "as_shipped": as_in_file(wanted["entry"], rows),
            }
        )
    answer = {"threads": bases, "functions": functions}
    pathlib.Path(ANSWER).write_text(json.dumps(answer))  # noqa: F821 - set by the caller


main()

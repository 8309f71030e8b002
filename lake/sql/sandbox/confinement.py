"""What a child gives up before it hears the first query: more memory, files it could write, other processes, sockets.

DuckDB is locked already; this holds where its locks fail. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct

# What the mapped files of Python, DuckDB and Arrow take of the resident size, beside the data that the limit counts.
FILES_BYTES = 96 << 20

_NO_NEW_PRIVS, _SET_SECCOMP, _SET_DUMPABLE, _FILTER = 38, 22, 4, 2
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD, _WRITES = 0x00010000, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# By architecture: sockets and connections, new programs and processes, other processes' memory, names in the file
# system, and io_uring, which does all of it without asking.
_REFUSED = {
    "x86_64": (
        41, 42, 43, 44, 46, 49, 50, 53, 57, 58, 59, 62, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 101, 133,
        155, 161, 165, 258, 259, 260, 263, 264, 265, 266, 268, 272, 288, 307, 310, 311, 316, 319, 321, 322,
        323, 424, 425, 434, 437, 438, 452,
    ),
    "aarch64": (
        33, 34, 35, 36, 37, 38, 39, 40, 41, 45, 46, 51, 52, 53, 54, 55, 97, 117, 129, 198, 199, 200, 202,
        203, 206, 211, 221, 242, 269, 270, 271, 276, 279, 280, 281, 282, 424, 425, 434, 437, 438, 452,
    ),
}  # fmt: skip
_OPENAT, _OPEN, _CLONE, _CLONE3 = {"x86_64": 257, "aarch64": 56}, 2, {"x86_64": 56, "aarch64": 220}, 435


def confine(memory_bytes: int) -> bool:
    """Sets the limits of this process for good. False where the kernel takes no filter of system calls."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # RLIMIT_AS counts what is only reserved, which for DuckDB's threads is more than what they use.
    data = memory_bytes - FILES_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    return _filter_calls(libc)


def _filter_calls(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in _REFUSED:
        return False
    program = _program(machine)
    code = b"".join(program)
    held = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(held))
    given = ctypes.create_string_buffer(head, len(head))
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(given), 0, 0) == 0)


def _program(machine: str) -> list[bytes]:
    """The filter, in BPF: refuse the calls above, opening for writing, and clones that are not threads."""

    def load(offset: int) -> bytes:
        return _step(0x20, 0, 0, offset)

    def unless_equal(value: int, skip: int) -> bytes:
        return _step(0x15, 0, skip, value)

    def give(verdict: int) -> bytes:
        return _step(0x06, 0, 0, verdict)

    number, first, third = load(0), load(16), load(32)
    made = [load(4), _step(0x15, 1, 0, _AUDIT_ARCH[machine]), give(_EPERM), number]
    if machine == "x86_64":  # the x32 calls have other numbers
        made += [_step(0x35, 0, 1, 0x40000000), give(_EPERM)]
    for call in _REFUSED[machine]:
        made += [unless_equal(call, 1), give(_EPERM)]
    # glibc falls back to clone, whose flags can be looked at.
    made += [unless_equal(_CLONE3, 1), give(_ENOSYS)]
    made += [unless_equal(_CLONE[machine], 4), first, _step(0x45, 1, 0, _CLONE_THREAD), give(_EPERM), give(_ALLOW)]
    made += [unless_equal(_OPENAT[machine], 4), third, _step(0x45, 0, 1, _WRITES), give(_EPERM), give(_ALLOW)]
    if machine == "x86_64":
        made += [unless_equal(_OPEN, 1), give(_EPERM)]
    return [*made, give(_ALLOW)]


def _step(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)

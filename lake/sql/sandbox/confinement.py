"""Takes from a child, before its first query, more memory, writing files, processes and sockets. Linux only.

DuckDB is locked already; this holds where its locks fail.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct

# What the mapped files of Python, DuckDB and Arrow take of the resident size, beside the data that the limit counts.
FILES_BYTES = 96 << 20

# System calls that fail with EPERM, by name: their numbers on each architecture, None where it lacks the call.
_ARCHITECTURES = ("x86_64", "aarch64")
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # sockets and connections
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # new programs and processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "memfd_create": (319, 279),
    # other processes and their memory
    "kill": (62, 129), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "userfaultfd": (323, 282),
    # names, sizes, owners and rights in the file system
    "truncate": (76, 45), "ftruncate": (77, 46), "creat": (85, None), "openat2": (437, 437),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "link": (86, None), "linkat": (265, 37), "unlink": (87, None), "unlinkat": (263, 35),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "fchownat": (260, 54),
    # the view of the system, and programs in the kernel
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "bpf": (321, 280),
    # does all of the above without a system call
    "io_uring_setup": (425, 425),
}  # fmt: skip
# Calls whose arguments decide.
_OPEN, _OPENAT = {"x86_64": 2}, {"x86_64": 257, "aarch64": 56}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_CLONE_THREAD, _WRITE_FLAGS = 0x00010000, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# x32 programs use the numbers of x86_64 with this bit set.
_X32_BIT = 0x40000000

# linux/prctl.h
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
# linux/seccomp.h: what to do with a call; an error has its number in the low bits. linux/audit.h: the architectures.
_MODE_FILTER = 2
_ALLOW, _REFUSE, _NOT_IMPLEMENTED = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# linux/bpf_common.h: instructions of the filter.
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_BITS_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data; arguments have eight bytes each, of which the filter needs the low four.
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _THIRD_ARGUMENT_AT = 0, 4, 16, 32


def confine(memory_bytes: int) -> bool:
    """Sets the limits of this process for good. False if the kernel takes no filter of system calls."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # RLIMIT_AS counts what is only reserved, which for DuckDB's threads is more than what they use.
    data = memory_bytes - FILES_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    return _filter_calls(libc)


def _filter_calls(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    program = _program(machine)
    code = b"".join(program)
    code_buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions and where they lie.
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code_buffer))
    head_buffer = ctypes.create_string_buffer(head, len(head))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(head_buffer), 0, 0) == 0)


def _program(machine: str) -> list[bytes]:
    """The filter: refuses the calls above, opening files to write, and clones that are not threads."""

    def load(offset: int) -> bytes:
        return _instruction(_LOAD, 0, 0, offset)

    def unless_equal(value: int, skip: int) -> bytes:
        return _instruction(_JUMP_EQUAL, 0, skip, value)

    def end(verdict: int) -> bytes:
        return _instruction(_RETURN, 0, 0, verdict)

    number, first, third = load(_NUMBER_AT), load(_FIRST_ARGUMENT_AT), load(_THIRD_ARGUMENT_AT)
    program = [load(_ARCHITECTURE_AT), _instruction(_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]), end(_REFUSE), number]
    if machine == "x86_64":
        program += [_instruction(_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT), end(_REFUSE)]
    column = _ARCHITECTURES.index(machine)
    for numbers in _REFUSED.values():
        if (call := numbers[column]) is not None:
            program += [unless_equal(call, 1), end(_REFUSE)]
    # glibc falls back to clone, whose flags the filter can see.
    program += [unless_equal(_CLONE3, 1), end(_NOT_IMPLEMENTED)]
    is_thread = _instruction(_JUMP_BITS_SET, 1, 0, _CLONE_THREAD)
    program += [unless_equal(_CLONE[machine], 4), first, is_thread, end(_REFUSE), end(_ALLOW)]
    writes = _instruction(_JUMP_BITS_SET, 0, 1, _WRITE_FLAGS)
    program += [unless_equal(_OPENAT[machine], 4), third, writes, end(_REFUSE), end(_ALLOW)]
    if machine in _OPEN:
        program += [unless_equal(_OPEN[machine], 1), end(_REFUSE)]
    return [*program, end(_ALLOW)]


def _instruction(code: int, skip_if_true: int, skip_if_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, skip_if_true, skip_if_false, value)

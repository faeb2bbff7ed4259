"""Calls of the kernel that no test program needs: the network, memory outside its limits, other processes, namespaces.

A second wall behind the namespaces, and the only one that keeps the network away where there are limits alone.
"""

import os
import struct

from tokensqueeze.verifiers.sandbox import kernel

# Names and numbers for x86_64 and aarch64.
_DENIED: dict[str, tuple[int, int]] = {
    "socket": (41, 198),  # socketpair, which asyncio and multiprocessing want, is another
    "setsockopt": (54, 208),  # would make the buffers of such a pair as large as it likes, memory that no limit counts
    "memfd_create": (319, 279),  # memory of that kind too, as are the next four
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers above, and the kernel's name of the architecture."""

_NEW_NAMESPACES = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | 0x02000000  # cgroup
)
_X32 = 0x40000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def deny_calls() -> bool:
    """Refuse the calls above from here on. Returns whether this machine's numbers are known."""
    if os.uname().machine not in _MACHINES:
        return False
    kernel.no_new_privileges()
    kernel.filter_calls(filter_program(os.uname().machine))
    return True


def filter_program(machine: str) -> bytes:
    """Return the filter in the kernel's classic BPF."""
    column, architecture = _MACHINES[machine]
    steps = [
        # A call by another architecture's numbers, such as a 32-bit program's, would pass unseen.
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, then=1),
        _step(_RETURN, _REFUSE | _EPERM),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, otherwise=1),
        _step(_RETURN, _REFUSE | _EPERM),
        # Its flags lie in memory, where a filter can't look; the C library falls back to clone.
        _step(_EQUAL, _CLONE3[column], otherwise=1),
        _step(_RETURN, _REFUSE | _ENOSYS),
    ]
    for numbers in _DENIED.values():
        steps += [_step(_EQUAL, numbers[column], otherwise=1), _step(_RETURN, _REFUSE | _EPERM)]
    steps += [
        _step(_EQUAL, _CLONE[column], otherwise=3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _NEW_NAMESPACES, otherwise=1),
        _step(_RETURN, _REFUSE | _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, operand: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """Return one instruction; `then` and `otherwise` are instructions to skip."""
    return struct.pack("=HBBI", code, then, otherwise, operand)

"""The calls of the Linux kernel that a sandbox needs and Python 3.11 has no functions for. Each raises `OSError`."""

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "mount_setattr": 442},
    "aarch64": {"pivot_root": 41, "capset": 91, "mount_setattr": 442},
}.get(os.uname().machine, {})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


def unshare(flags: int) -> None:
    _check("unshare", _libc.unshare(flags))


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str = "") -> None:
    _check(f"mount {target}", _libc.mount(_text(source), target.encode(), _text(kind), flags, data.encode()))


def make_read_only(path: str) -> None:
    """Make a mount and all below it read-only, and its set-user-id programs ordinary (Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _syscall("mount_setattr", _AT_FDCWD, path.encode(), _AT_RECURSIVE, ctypes.byref(attributes), size)


def enter_root(path: str) -> None:
    """Make a mount the root of this mount namespace and let go of the old one."""
    os.chdir(path)
    # The old root comes to lie over the new one, where it is taken away again: pivot_root(2), "pivot_root(".", ".")".
    _syscall("pivot_root", b".", b".")
    _check("umount2", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability for good, and whatever a program file would give."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _syscall("capset", ctypes.byref(header), ctypes.byref(none))
    no_new_privileges()


def no_new_privileges() -> None:
    _prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal_number: int) -> None:
    _prctl("pdeathsig", _PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl("child_subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def own_proc_files() -> None:
    """Let a process that has changed its user open its own files in /proc."""
    _prctl("dumpable", _PR_SET_DUMPABLE, 1)


def filter_calls(program: bytes) -> None:
    """Install a seccomp filter, an array of `struct sock_filter`, for this process and its descendants."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    header = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _prctl(name: str, option: int, value: int, pointer: int = 0) -> None:
    _check(f"prctl {name}", _libc.prctl(option, value, pointer, 0, 0))


def _syscall(name: str, *arguments: object) -> None:
    if name not in _NUMBERS:
        raise OSError(0, f"{name}: not known on {os.uname().machine}")
    _check(name, _libc.syscall(ctypes.c_long(_NUMBERS[name]), *arguments))


def _check(name: str, result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()

"""A root folder that holds Python's standard library, what it loads, and nothing of the machine's or its users'.

The spawner enters it once, in a user namespace of its own; every program gets another one inside, with an empty /tmp.
"""

import errno
import os
import sys
import sysconfig
from pathlib import Path

from tokensqueeze.verifiers.sandbox import kernel

NOBODY = 65534
_SCAFFOLD = "/tmp"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PER_PROGRAM = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)


def visible_folders() -> list[str]:
    """Return the folders of the machine that a program may read: system libraries, the interpreter's library."""
    folders = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo"]
    libraries = [f"{sys.base_prefix}/lib", sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    found = [path for path in dict.fromkeys((*folders, *map(os.path.realpath, libraries))) if os.path.exists(path)]
    # What lies below another one of them is seen with it.
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found if other != path)]


def installed_packages() -> list[str]:
    """Return the folders of installed packages inside the visible ones, which are to be hidden."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = {f"{sys.base_prefix}/lib/{version}/site-packages", "/usr/lib/python3/dist-packages"}
    return sorted(path for path in map(os.path.realpath, candidates) if os.path.isdir(path))


def enter_jail(proc: int) -> None:
    """Move this process into the jail. Root becomes nobody there, whom the kernel's limits bind.

    `proc` is an open folder of the machine's /proc, which the jail doesn't have.
    """
    _new_user_namespace(proc)
    kernel.mount(None, "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    # Opened first: the scaffold may come to lie over some of them.
    sources = {path: os.open(path, os.O_PATH) for path in visible_folders() if not os.path.islink(path)}
    links = {path: os.readlink(path) for path in visible_folders() if os.path.islink(path)}
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES}
    hidden = installed_packages()

    kernel.mount("tmpfs", _SCAFFOLD, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    for name in ("dev", "tmp", "proc"):
        os.mkdir(f"{_SCAFFOLD}/{name}")
    for name, descriptor in devices.items():
        Path(f"{_SCAFFOLD}/dev/{name}").touch()
        _bind(descriptor, f"{_SCAFFOLD}/dev/{name}")
    os.symlink("/tmp", f"{_SCAFFOLD}/dev/shm")
    for path, descriptor in sources.items():
        os.makedirs(_SCAFFOLD + path, exist_ok=True)
        _bind(descriptor, _SCAFFOLD + path)
    for path, target in links.items():
        os.symlink(target, _SCAFFOLD + path)
    for path in hidden:
        kernel.mount("tmpfs", _SCAFFOLD + path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=555,size=4k")
    kernel.make_read_only(_SCAFFOLD)
    kernel.enter_root(_SCAFFOLD)
    for descriptor in (*sources.values(), *devices.values()):
        os.close(descriptor)
    if os.getuid() == 0:
        become(NOBODY)


def enter_namespaces(proc: int) -> None:
    """Give this process' next child a network, processes and users of its own, none of which it shares."""
    user, group = os.getuid(), os.getgid()
    kernel.unshare(_PER_PROGRAM)
    _map_ids(proc, user, group)


def mount_temporary(max_bytes: int) -> None:
    """Put an empty folder of a program's own over /tmp."""
    options = f"mode=700,size={max_bytes},nr_inodes=10000"
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    os.chdir("/tmp")


def become(user: int) -> None:
    """Let root go for good."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kernel.own_proc_files()


def _new_user_namespace(proc: int) -> None:
    """Enter a user namespace with the right to mount. Root takes nobody along: root's processes no limit counts."""
    user, group = os.getuid(), os.getgid()
    flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
    if user != 0:
        kernel.unshare(flags)
        _map_ids(proc, user, group)
        return
    # Two users can only be mapped from outside: by a child that stays there.
    inside_read, inside_write = os.pipe()
    me, mapper = os.getpid(), os.fork()
    if mapper == 0:
        try:
            os.close(inside_write)
            os.read(inside_read, 1)
            for name in ("uid_map", "gid_map"):
                _write(proc, f"{me}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            os._exit(0)
        finally:
            os._exit(1)
    os.close(inside_read)
    try:
        kernel.unshare(flags)
    finally:
        os.close(inside_write)
        status = os.waitpid(mapper, 0)[1]
    if status != 0:
        raise OSError(errno.EPERM, "uid_map: root may not take nobody along into a user namespace")


def _map_ids(proc: int, user: int, group: int) -> None:
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/uid_map", f"{user} {user} 1\n")
    _write(proc, "self/gid_map", f"{group} {group} 1\n")


def _bind(descriptor: int, target: str) -> None:
    # By way of the open file: its path may lead through folders that are hidden by now.
    kernel.mount(f"/proc/self/fd/{descriptor}", target, flags=kernel.MS_BIND | kernel.MS_REC)


def _write(folder: int, path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

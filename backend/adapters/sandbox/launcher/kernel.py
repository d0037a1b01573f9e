"""System calls that the standard library does not offer, by ctypes; a failure is an `OSError` that names the call."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 1, 24, 22, 38, 36
_PR_CAP_AMBIENT = 47
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

LL_READ = 1 | 4 | 8  # execute, read file, read directory
LL_FILE = 1 | 2 | 4 | 1 << 14 | 1 << 15  # the rights that make sense on something that is no directory
LL_IOCTL = 1 << 15

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags`."""
    _must(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """Put a file system or a binding at `target`."""
    encoded = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    options = None if data is None else data.encode()
    _must(_libc.mount(*encoded, ctypes.c_ulong(flags), options), f"mount {target}")


def unmount(target: str) -> None:
    """Detach a mount at once."""
    _must(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace."""
    number = _PIVOT_ROOT[platform.machine()]
    _must(_libc.syscall(number, os.fsencode(new), os.fsencode(old)), "pivot_root")


def _prctl(option: int, *args: int) -> int:
    words = [ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(ctypes.c_int(option), *words))


def die_with_parent() -> None:
    """Get SIGKILL when the parent ends."""
    _must(_prctl(_PR_SET_PDEATHSIG, 9), "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Become the parent of every orphan below, so that no daemon leaves the tree."""
    _must(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "PR_SET_CHILD_SUBREAPER")


def no_new_privileges() -> None:
    """Make set-uid programs and file capabilities mean nothing from here on."""
    _must(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")


def drop_capabilities() -> None:
    """Empty every capability set, the bounding set too."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability) < 0:
            break
    _prctl(_PR_CAP_AMBIENT, 4)
    header = struct.pack("=Ii", 0x20080522, 0)
    _must(_libc.capset(header, bytes(24)), "capset")


def load_seccomp(program: bytes) -> None:
    """Install a classic BPF program as this process's system-call filter, for good."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    filled = Program(len(program) // 8, ctypes.addressof(code))
    _must(_prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(filled)), "PR_SET_SECCOMP")


def landlock_abi() -> int:
    """Return the version of Landlock the kernel offers, 0 for none."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def landlock(read: list[str], write: list[str], *, network: bool, scoped: bool) -> None:
    """Restrict this process and its children to these paths, for good.

    `read` may be read and executed, `write` also changed; without `network` no TCP port may be bound or reached, and
    `scoped` keeps signals and abstract sockets inside (both as far as the kernel knows how).
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError("The kernel offers no Landlock.")
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    words = [everything, 0 if network else 3, 3 if scoped else 0]
    rules = struct.pack(f"={1 if abi < 4 else 2 if abi < 6 else 3}Q", *words[: 1 if abi < 4 else 2 if abi < 6 else 3])
    handle = _must(_libc.syscall(_LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0), "landlock_create_ruleset")
    for paths, rights in ((read, LL_READ), (write, everything)):
        for path in paths:
            _allow(handle, path, rights & everything)
    _must(_libc.syscall(_LANDLOCK_RESTRICT, ctypes.c_int(handle), 0), "landlock_restrict_self")
    os.close(handle)


def _allow(handle: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # what cannot be reached need not be allowed
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112  (strings only: this program starts in milliseconds)
            rights &= LL_FILE
        rule = struct.pack("=Qi", rights, opened)
        _must(_libc.syscall(_LANDLOCK_ADD, ctypes.c_int(handle), 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(opened)

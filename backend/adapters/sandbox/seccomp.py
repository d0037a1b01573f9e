"""The system-call filter as classic BPF: everything is allowed except what only attackers and administrators need."""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NAMESPACES = 0x7E020000
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink; never vsock, packet, alg
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_SAME_EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    "memfd_secret": 447, "open_tree_attr": 467,
}  # fmt: skip
_X86_64 = {
    "ioctl": 16, "shmget": 29, "shmat": 30, "socket": 41, "clone": 56, "kill": 62, "ptrace": 101, "syslog": 103,
    "rt_sigqueueinfo": 129, "uselib": 134, "modify_ldt": 154, "pivot_root": 155, "adjtimex": 159, "chroot": 161,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176,
    "quotactl": 179, "nfsservctl": 180, "tkill": 200, "lookup_dcookie": 212, "clock_settime": 227, "tgkill": 234,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272,
    "move_pages": 279, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319, "kexec_file_load": 320,
    "bpf": 321, "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "lookup_dcookie": 18, "ioctl": 29, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42, "chroot": 51,
    "quotactl": 60, "acct": 89, "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
    "clock_settime": 112, "syslog": 116, "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131,
    "rt_sigqueueinfo": 138, "reboot": 142, "sethostname": 161, "setdomainname": 162, "settimeofday": 170,
    "adjtimex": 171, "shmget": 194, "shmat": 196, "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219,
    "clone": 220, "swapon": 224, "swapoff": 225, "migrate_pages": 238, "move_pages": 239, "rt_tgsigqueueinfo": 240,
    "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "finit_module": 273, "memfd_create": 279, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip
_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
_ABSENT = ("clone3", "memfd_create", "memfd_secret", "io_uring_setup", "io_uring_enter", "io_uring_register", "shmget")
"""Answered as if the kernel did not have them, so that programs take their older way."""
_SPECIAL = ("socket", "clone", "ioctl", *_SIGNALS)


def supported() -> bool:
    """Whether this machine's processor is one the filter knows."""
    return platform.machine() in _ARCH


def program(*, sockets: bool, signals: bool) -> bytes:
    """Return the filter; without `sockets` no socket can be made at all, without `signals` none can be sent."""
    machine = platform.machine()
    numbers = {**_SAME_EVERYWHERE, **(_X86_64 if machine == "x86_64" else _AARCH64)}
    rules: list[bytes] = [_step(_LOAD, 4), _step(_EQUAL, _ARCH[machine], 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    if machine == "x86_64":
        rules += [_step(_ABOVE, 0x40000000, 0, 1), _refuse(errno.ENOSYS)]
    for name, number in numbers.items():
        if name not in _SPECIAL or (name in _SIGNALS and not signals):
            rules += [_step(_EQUAL, number, 0, 1), _refuse(errno.ENOSYS if name in _ABSENT else errno.EPERM)]
    rules += _when(numbers["clone"], 0, _ANY_BIT, (_NAMESPACES,), errno.EPERM)
    rules += _when(numbers["ioctl"], 1, _EQUAL, _TERMINAL_INPUT, errno.EPERM)
    rules += _only(numbers["socket"], 0, _FAMILIES if sockets else (), errno.EACCES)
    return b"".join([*rules, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _refuse(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _when(number: int, argument: int, test: int, values: Sequence[int], error: int) -> list[bytes]:
    """Refuse a call when its argument passes the test with any of the values."""
    body = [_step(_LOAD, 16 + 8 * argument)]
    for value in values:
        body += [_step(test, value, 0, 1), _refuse(error)]
    body.append(_step(_LOAD, 0))
    return [_step(_EQUAL, number, 0, len(body)), *body]


def _only(number: int, argument: int, values: Sequence[int], error: int) -> list[bytes]:
    """Refuse a call unless its argument is one of the values."""
    body = [_step(_LOAD, 16 + 8 * argument)]
    body += [_step(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    body += [_refuse(error), _step(_LOAD, 0)]
    return [_step(_EQUAL, number, 0, len(body)), *body]

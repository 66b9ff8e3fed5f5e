"""Writes that the kernel takes only a part of, and says so: the caller must write the rest.

No fault injector of Debian does that, so the consumer's main thread is traced here: on its way into a write, the number
of bytes is made smaller, and put back on the way out. x86-64 only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import signal
from collections import Counter
from pathlib import Path

from tests.faults.kill_histories import Folder

ATTACH, GETREGS, SETREGS, SYSCALL, SETOPTIONS = 16, 12, 13, 24, 0x4200
TRACESYSGOOD, EXITKILL = 1, 0x100000
WRITES = {1: "write", 18: "pwrite64"}
RDI, RDX, ORIG_RAX = 14, 12, 15
"""Their places in `struct user_regs_struct`."""

Registers = ctypes.c_ulonglong * 27


def cannot() -> str | None:
    """Return why writes cannot be cut short here; None if they can."""
    return (
        None if platform.machine() == "x86_64" else f"the registers of x86_64 are needed, this is {platform.machine()}"
    )


def _ptrace(request: int, pid: int, data: object = None) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    library.ptrace.restype = ctypes.c_long
    if library.ptrace(request, pid, None, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def run_with_short_writes(folder: Folder, dice: random.Random, share: float, *options: str) -> tuple[int, Counter[str]]:
    """Start a consumer, and cut a share of its writes short until it ends.

    Returns
    -------
    tuple
        The exit code, and how many writes were cut short, by call and file.
    """
    process = folder.start(*options, stopped=True)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    _ptrace(ATTACH, process.pid)
    os.waitpid(process.pid, 0)
    _ptrace(SETOPTIONS, process.pid, TRACESYSGOOD | EXITKILL)
    cut: Counter[str] = Counter()
    registers, meant, inside, number = Registers(), 0, False, 0
    process.send(signal.SIGCONT)
    while True:
        _ptrace(SYSCALL, process.pid, number)
        _, status = os.waitpid(process.pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status), cut
        stop = os.WSTOPSIG(status)
        number = 0
        if stop != signal.SIGTRAP | 0x80:
            number = 0 if stop in (signal.SIGTRAP, signal.SIGSTOP) else stop  # passed on
            continue
        inside = not inside
        if not inside and not meant:
            continue
        _ptrace(GETREGS, process.pid, ctypes.addressof(registers))
        if not inside:
            registers[RDX], meant = meant, 0
            _ptrace(SETREGS, process.pid, ctypes.addressof(registers))
        elif registers[ORIG_RAX] in WRITES and registers[RDX] > 1 and dice.random() < share:
            try:
                path = Path(os.readlink(f"/proc/{process.pid}/fd/{registers[RDI]}"))
            except OSError:
                continue
            if folder.run in path.parents:
                meant = registers[RDX]
                registers[RDX] = dice.randrange(1, meant)
                _ptrace(SETREGS, process.pid, ctypes.addressof(registers))
                name = "tape/part" if path.parent != folder.run else path.name
                cut[f"{WRITES[registers[ORIG_RAX]]} {name}"] += 1

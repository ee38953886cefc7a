"""The first process of a lab's guest: it is put there as `/init`, and needs nothing but the standard library.

It mounts what a Linux system has, loads the modules of KVM, runs the command and reports through three
virtio-serial ports: stdout, stderr, and `result`, which gets one line of JSON, `{"error": SENTENCE}` or
`{"status": N, "late": BOOL}` (late: the command had to be ended), and after a status a tar of the files that
the command made or changed in its working folder, if they are wanted.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

CONFIG: Final = "/xenkvm-lab.json"
"""Holds an object: `command` (list of text), `folder`, `environment` (object of text), `wants_files`, and
`deadline`: when to end the command (seconds of the epoch, or null)."""
MODULES: Final = "/xenkvm-lab-modules"
"""Folder of kernel modules in the order of their names."""
PORTS: Final = ("xenkvm.stdout", "xenkvm.stderr", "xenkvm.result")

_MOUNTS: Final = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/dev/shm"),  # noqa: S108 - a mount point
    ("devpts", "/dev/pts"),
    ("tracefs", "/sys/kernel/tracing"),
    ("debugfs", "/sys/kernel/debug"),
    ("tmpfs", "/run"),
)
_LINKS: Final = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
_FINIT_MODULE: Final = 313
"""Number of the system call on x86-64."""
_RB_AUTOBOOT: Final = 0x01234567
"""reboot(2): restart; QEMU is told to end instead."""
_AF_INET: Final = 2
_SOCK_STREAM: Final = 1
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41
_WRITE: Final = 32768
"""Bytes that a virtio-serial port takes at once."""
_NOT_FOUND: Final = 127
_SIGNALLED: Final = 128
"""Exit statuses as shells have them."""
_LINGER_S: Final = 0.3
"""What the command left running may hold its output open: wait for no more than that."""
_AT_ONCE_S: Final = 0.001
_PORTS_S: Final = 10.0
_NOT_WORTH_KEEPING: Final = ("__pycache__", ".pytest_cache", ".hypothesis")


def main() -> None:
    """Run as the first process; never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        os.umask(0o022)
        _mount_all(libc)
        out, err, result = (_port(name) for name in PORTS)
        config = json.loads(Path(CONFIG).read_bytes())
        problem = _load_modules(libc)
        _loopback_up(libc)
        if problem or not Path("/dev/kvm").exists():
            _report(result, {"error": problem or "the kernel has no /dev/kvm: it lacks KVM's AMD part"})
            return
        started = time.time_ns()
        status, late = _run(config, out, err)
        _report(result, {"status": status, "late": late})
        if config["wants_files"]:
            send_files(result, config["folder"], started)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()  # the console
        libc.reboot(_RB_AUTOBOOT)


def changed_files(folder: str, since: int) -> Iterator[str]:
    """Yield the regular files below `folder` that were made or changed after `since` (ns of the epoch).

    Caches of Python and of tests are left out. Symbolic links aren't followed.
    """
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_WORTH_KEEPING)
        for name in sorted(files):
            path = f"{base}/{name}"
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_ctime_ns >= since:
                yield path


def send_files(port: int, folder: str, since: int) -> None:
    """Write `changed_files` to a descriptor as a tar, with names relative to `folder`."""
    import tarfile  # noqa: PLC0415 - takes an emulated CPU half a second

    class Port:
        def write(self, data: bytes) -> int:
            write_all(port, data)
            return len(data)

    with tarfile.open(fileobj=Port(), mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for path in changed_files(folder, since):
            tar.add(path, os.path.relpath(path, folder), recursive=False)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, however little the descriptor takes at once."""
    while data:
        data = data[os.write(descriptor, data[:_WRITE]) :]


def _report(port: int, outcome: dict[str, Any]) -> None:
    write_all(port, f"{json.dumps(outcome)}\n".encode())


def _mount_all(libc: ctypes.CDLL) -> None:
    for kind, place in _MOUNTS:
        Path(place).mkdir(parents=True, exist_ok=True)
        if libc.mount(b"none", place.encode(), kind.encode(), 0, None):
            sys.stdout.write(f"{kind} can't be mounted at {place}: {os.strerror(ctypes.get_errno())}\n")
    for name, target in _LINKS.items():
        if not os.path.lexists(f"/dev/{name}"):
            Path("/dev", name).symlink_to(f"/proc/self/fd{target}")
    Path("/tmp").chmod(0o1777)  # noqa: S108 - as it is everywhere


def _port(name: str) -> int:
    """Open the virtio-serial port of that name, as soon as the driver has found it."""
    deadline = time.monotonic() + _PORTS_S
    while True:
        for port in Path("/sys/class/virtio-ports").glob("*"):
            if (port / "name").exists() and (port / "name").read_text().strip() == name:
                return os.open(f"/dev/{port.name}", os.O_WRONLY | os.O_CLOEXEC)
        if time.monotonic() > deadline:
            raise OSError(f"no virtio-serial port {name}: the kernel lacks virtio-console")
        time.sleep(0.05)


def _load_modules(libc: ctypes.CDLL) -> str | None:
    """Load them in order; returns what went wrong."""
    for path in sorted(Path(MODULES).iterdir()):
        with path.open("rb") as file:
            if libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0):
                reason = os.strerror(ctypes.get_errno())
                return f"the kernel refused its module {path.name[3:]} ({reason}): is it of another kernel?"
    return None


def _loopback_up(libc: ctypes.CDLL) -> None:
    any_socket = libc.socket(_AF_INET, _SOCK_STREAM, 0)  # Python's module takes 0.2 s to import here
    fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))
    os.close(any_socket)


def _run(config: dict[str, Any], out: int, err: int) -> tuple[int, bool]:
    """Run the command, carry its output to the ports, bury orphans.

    Returns its exit status as a shell's, and whether it was ended because its time was over.
    """
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    signal.set_wakeup_fd(wake_write)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become(config, out_write, err_write)
    os.close(out_write)
    os.close(err_write)
    ports = {out_read: out, err_read: err}
    status: int | None = None
    late = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal late
        if status is None:
            late = True
            _kill(child)

    _call_at(config["deadline"], end)
    while ports:
        ready, _, _ = select.select([*ports, wake_read], [], [], None if status is None else _LINGER_S)
        if status is not None and not set(ready) & set(ports):
            break
        for descriptor in ready:
            if descriptor == wake_read:
                os.read(wake_read, _WRITE)
                ended = _bury(child)
                status = status if ended is None else ended
            elif data := os.read(descriptor, _WRITE):
                write_all(ports[descriptor], data)
            else:
                del ports[descriptor]
    if status is None:
        status = _shell_status(os.waitpid(child, 0)[1])
    return status, late


def _call_at(deadline: float | None, handler: Callable[[int, object], None]) -> None:
    """Call `handler` then (seconds of the epoch), as a signal's; None: never."""
    if deadline is not None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, max(_AT_ONCE_S, deadline - time.time()))


def _kill(child: int) -> None:
    """End the command, and what it started and didn't leave it."""
    os.kill(child, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it leads no group yet
        os.killpg(child, signal.SIGKILL)


def _become(config: dict[str, Any], out: int, err: int) -> None:
    command = config["command"]
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(config["folder"])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(command[0], command, config["environment"])  # noqa: S606 - the user's own
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror} in the lab\n".encode())
    os._exit(_NOT_FOUND)


def _bury(child: int) -> int | None:
    """Reap whatever ended; returns the exit status of `child` if it was among them."""
    status = None
    while True:
        try:
            process, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if process == 0:
            return status
        if process == child:
            status = _shell_status(ended)


def _shell_status(ended: int) -> int:
    code = os.waitstatus_to_exitcode(ended)
    return code if code >= 0 else _SIGNALLED - code


if __name__ == "__main__":
    main()

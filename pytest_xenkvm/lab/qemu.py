"""QEMU's command line for a guest that has KVM, and the process."""

from __future__ import annotations

import ctypes
import platform
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.guest_init import PORTS
from pytest_xenkvm.lab.host_clock import tsc_khz

_PROGRAM: Final = "qemu-system-x86_64"
_KERNEL_OPTIONS: Final = (
    "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic rdinit=/init "
    "nokaslr mitigations=off audit=0 nowatchdog random.trust_cpu=on "
    # An emulated CPU is slow: what waits for clocks to be compared or for quiet CPUs costs seconds.
    "tsc=reliable no_timer_check rcupdate.rcu_expedited=1"
)
_PR_SET_PDEATHSIG: Final = 1


@frozen
class Machine:
    """An emulated machine."""

    memory: int = 2048
    """MiB."""
    cpus: int = 1


def find_qemu() -> str:
    """Return where QEMU is. Raises LabError if this machine can't run the lab."""
    if platform.machine() != "x86_64":
        raise LabError(
            f"this machine is {platform.machine()}: the lab runs this Python environment on an x86-64 "
            "kernel, so it needs an x86-64 machine"
        )
    found = shutil.which(_PROGRAM)
    if found is None:
        raise LabError(f"{_PROGRAM} isn't installed; Debian and Ubuntu: apt-get install qemu-system-x86")
    return found


def command_line(machine: Machine, kernel: Path, initramfs: int, pipes: Sequence[int]) -> list[str]:
    """Return the words that start a guest.

    `initramfs` and `pipes` are descriptors that QEMU inherits: pipes for the serial console and `PORTS`.
    Raises LabError if this machine can't run the lab.
    """
    console, *ports = pipes
    threads = "single" if machine.cpus == 1 else "multi"
    words = [find_qemu(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-accel", f"tcg,thread={threads}", "-cpu", "EPYC,+svm,+npt,+x2apic", "-M", "q35,hpet=off"]
    words += ["-m", str(machine.memory), "-smp", str(machine.cpus)]
    words += ["-chardev", f"file,id=console,path=/proc/self/fd/{console}", "-serial", "chardev:console"]
    words += ["-device", "virtio-serial-pci"]
    for number, (name, port) in enumerate(zip(PORTS, ports, strict=True), 1):
        words += ["-chardev", f"file,id=port{number},path=/proc/self/fd/{port}"]
        words += ["-device", f"virtserialport,nr={number},chardev=port{number},name={name}"]
    khz = tsc_khz()
    options = f"{_KERNEL_OPTIONS} tsc_early_khz={khz}" if khz else _KERNEL_OPTIONS
    return [*words, "-kernel", str(kernel), "-initrd", f"/proc/self/fd/{initramfs}", "-append", options]


def start(words: Sequence[str], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start QEMU; its complaints are in the process's `stderr`.

    It ends when this process does, however that ends. It is out of reach of the terminal's Ctrl-C:
    who started it ends it.
    """
    libc = ctypes.CDLL(None)
    return subprocess.Popen(  # noqa: S603
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=inherited,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - it starts no thread
    )

"""`xenkvm lab`: a command in a guest with a real kernel and KVM."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.lab.errors import GuestDied, LabError, TimedOut
from pytest_xenkvm.lab.fetch import fetch as fetch_kernel
from pytest_xenkvm.lab.guest import Job
from pytest_xenkvm.lab.kernels import SOURCES, Kernel, KernelCache, kernel_of_files
from pytest_xenkvm.lab.qemu import Machine, find_qemu
from pytest_xenkvm.lab.run import Output
from pytest_xenkvm.lab.run import run as run_job

DIED_EXIT: Final = 125
"""The guest ended before its command did."""
LATE_EXIT: Final = 124
"""The command took too long: as timeout(1) has it."""
_MIN_MEMORY: Final = 512
_MAX_CPUS: Final = 64
_MIB: Final = 1 << 20
_NAME_WIDTH: Final = max(map(len, SOURCES)) + 2

_EPILOG: Final = """\b
Examples:
  xenkvm lab list                                 which kernels there are
  xenkvm lab fetch linux-6.12                     get a kernel (some 60 MiB in the cache)
  xenkvm lab run -- uname -a                      a command on Linux 6.12
  xenkvm lab run --kernel linux-7.3 -- pytest --pyargs pytest_xenkvm.conformance --xenkvm-host=kvm
"""

_FETCH_EPILOG: Final = """\b
Examples:
  xenkvm lab fetch linux-6.12               needed by `xenkvm lab run` unless told otherwise
  xenkvm lab fetch linux-6.12 linux-7.3     two kernels; again, later, for newer releases

Exit codes: 0 fetched, 2 it can't be (the reason is on stderr).
"""

_LIST_EPILOG: Final = """\b
Example:
  xenkvm lab list     a kernel's release, size and place, and the packages that it came from
"""

_RUN_EPILOG: Final = """\b
Examples:
  xenkvm lab run -- python -c 'print(open("/dev/kvm"))'
  xenkvm lab run --kernel linux-7.3 -- pytest --pyargs pytest_xenkvm.conformance --xenkvm-host=kvm
  xenkvm lab run --copy tests -- pytest tests               with files of this folder
  xenkvm lab run --out here -- xenkvm record -o boot.xkt    here/boot.xkt comes back
  xenkvm lab run --with strace -- strace -c python my_vmm.py
  xenkvm lab run --kernel ./vmlinux --modules /lib/modules/6.18.1 -- ls -l /dev/kvm

In the guest, at the paths that they have here: this Python environment with the projects that are
installed editable (but not pip, mypy, ruff, Sphinx and such), COMMAND, /bin/sh, and BusyBox's tools if you
have it. Besides: /dev/kvm, tracefs in /sys/kernel/tracing, loopback; no network and no disk. COMMAND runs
as root in the folder of this name, with nothing on its stdin, and with the variables PYTHON*, PYTEST*,
XENKVM*, CI, TERM and those of --env.

Exit codes: COMMAND's own (128 + N if signal N ended it), 127 if it can't be run, 124 if it took too long,
125 if the guest died, 2 if the lab can't be had, 130 interrupted.
"""


@contextmanager
def _told() -> Iterator[None]:
    """Turn what keeps the lab from running into the user's sentence."""
    try:
        yield
    except LabError as error:
        raise UserError(str(error)) from error


def _say(line: str) -> None:
    click.echo(f"xenkvm: {line}", err=True)


@click.group(epilog=_EPILOG)
def lab() -> None:
    """Run commands on a real kernel with KVM and its Xen support, without hardware virtualisation.

    QEMU emulates a machine with virtualisation, on which a stock distribution kernel boots in some seconds.
    """


@lab.command("fetch", epilog=_FETCH_EPILOG, short_help="Fetch kernels from Debian, by apt.")
@click.argument("kernels", nargs=-1, required=True, metavar="KERNEL...")
def fetch(kernels: tuple[str, ...]) -> None:
    """Fetch the newest release of each KERNEL (linux-6.12, linux-7.2, linux-7.3) from Debian, by apt.

    Nothing is installed, and it takes no privilege. The kernels are kept in the user's cache folder
    (XDG_CACHE_HOME, else ~/.cache); an older release of the same kernel is replaced.
    """
    cache = KernelCache.of_user()
    with _told():
        for name in kernels:
            fetch_kernel(name, cache, _say, is_shown=sys.stderr.isatty())


@lab.command("list", epilog=_LIST_EPILOG)
def list_() -> None:
    """Tell which kernels can be fetched, and which are there."""
    cache = KernelCache.of_user()
    with _told():
        for name, source in SOURCES.items():
            facts = cache.facts(name)
            if facts is None:
                click.echo(f"{name:{_NAME_WIDTH}}not fetched; from Debian's {', '.join(source.suites)}")
                continue
            size = cache.size(name) // _MIB
            click.echo(f"{name:{_NAME_WIDTH}}{facts.release}, {size} MiB in {cache.folder / name}")
            for package in facts.packages:
                click.echo(f"{'':{_NAME_WIDTH}}{package}")


def _variables(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name:
            raise click.BadParameter(f"{value!r} names no variable; say NAME or NAME=VALUE")
        if not equals and name not in os.environ:
            raise click.BadParameter(f"{name} isn't set here; say NAME=VALUE")
        found[name] = text if equals else os.environ[name]
    return found


@lab.command("run", epilog=_RUN_EPILOG, short_help="Boot a kernel and run a command in it.")
@click.option(
    "--kernel",
    default="linux-6.12",
    show_default=True,
    metavar="KERNEL|FILE",
    help="linux-6.12, linux-7.2, linux-7.3 (fetched if it isn't there), or a vmlinux or vmlinuz of your own.",
)
@click.option(
    "--modules",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder below /lib/modules of a kernel of your own; needless if KVM is built in.",
)
@click.option(
    "--memory",
    type=click.IntRange(_MIN_MEMORY),
    default=2048,
    show_default=True,
    metavar="MIB",
    help="The guest's memory, which holds its files, too.",
)
@click.option(
    "--cpus",
    type=click.IntRange(1, _MAX_CPUS),
    default=1,
    show_default=True,
    metavar="N",
    help="The guest's CPUs.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="End COMMAND, and the guest, after S seconds; default: never.",
)
@click.option(
    "--copy",
    "copies",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Bring this file or folder, too. Repeatable.",
)
@click.option(
    "--with",
    "programs",
    multiple=True,
    metavar="PROGRAM",
    help="Bring this program with its shared libraries, too. Repeatable.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="DISTRIBUTION",
    help="Leave out this installed distribution: a smaller guest starts sooner. Repeatable.",
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    callback=_variables,
    metavar="NAME[=VALUE]",
    help="Pass a variable. Repeatable.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Put here the files that COMMAND made or changed in its working folder; else they are lost.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    kernel: str,
    modules: Path | None,
    timeout: float | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Boot a kernel, run COMMAND in it with this Python environment, and exit as it did."""
    machine = Machine(options.pop("memory"), options.pop("cpus"))
    job = Job(folder=Path.cwd(), wants_files=out is not None, **options)
    with _told(), tempfile.TemporaryDirectory(prefix="xenkvm-lab-") as temporary:
        find_qemu()  # before a kernel is fetched for nothing
        chosen = _kernel(kernel, modules, Path(temporary))
        output = Output(sys.stdout.buffer, sys.stderr.buffer, out, _progress(f"booting {kernel}..."))
        try:
            status = run_job(job, chosen, machine, output, timeout)
        except GuestDied as error:
            for line in error.console:
                click.echo(f"| {line}", err=True)
            _say(str(error))
            status = LATE_EXIT if isinstance(error, TimedOut) else DIED_EXIT
    ctx.exit(status)


def _progress(text: str) -> Callable[[], None]:
    """On a terminal, say so until the returned function is called."""
    if not sys.stderr.isatty():
        return lambda: None
    click.echo(text, nl=False, err=True)
    return lambda: click.echo("\r\x1b[K", nl=False, err=True)


def _kernel(name: str, modules: Path | None, folder: Path) -> Kernel:
    if name not in SOURCES:
        image = Path(name)
        if not image.is_file():
            problem = "is a folder" if image.is_dir() else "found no such file"
            expected = f"expected a vmlinux or vmlinuz, or {', '.join(SOURCES)}"
            raise UserError(f"--kernel {name}: {problem}, {expected}")
        try:
            return kernel_of_files(image, modules, folder)
        except LabError as error:
            raise UserError(f"--kernel {name}: {error}") from error
    if modules is not None:
        raise UserError(f"--modules goes with a kernel of your own; {name} brings its modules")
    cache = KernelCache.of_user()
    found = cache.kernel(name)
    if found is None:
        fetch_kernel(name, cache, _say, is_shown=sys.stderr.isatty())
    return found or cache.fetched(name)

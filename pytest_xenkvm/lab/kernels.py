"""The kernels of the lab: which ones it can fetch, and the ones that are there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from attrs import asdict, field, frozen

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.modules import modules_of
from pytest_xenkvm.lab.vmlinux import vmlinux_of

_CACHE_VARIABLE: Final = "XDG_CACHE_HOME"
_FACTS: Final = "kernel.json"
_VMLINUX: Final = "vmlinux"
_MODULES: Final = "modules"


@frozen
class Source:
    """Where the releases of a series are, in Debian's archive."""

    series: str
    """The first numbers of the releases, as in 6.12."""
    suites: tuple[str, ...]
    """Suites of the archive: of the first that has the series, the newest release is taken."""


SOURCES: Final[Mapping[str, Source]] = {
    "linux-6.12": Source("6.12", ("bookworm-security", "trixie-security", "trixie")),
    "linux-7.2": Source("7.2", ("sid", "forky")),
    "linux-7.3": Source("7.3", ("experimental", "sid", "forky")),
}
"""By profile, whose kernel it is. Debian's flavour `cloud` has KVM_XEN, virtio-serial and the tracepoints."""


@frozen
class Kernel:
    """A kernel that can be started: an ELF file, or a bzImage, and the modules that make `/dev/kvm`."""

    name: str
    image: Path
    modules: tuple[Path, ...] = ()
    """Uncompressed, in the order in which to load them."""


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    """JSON knows lists only."""
    return tuple(values)


@frozen
class Facts:
    """What is known about a fetched kernel."""

    release: str
    """As `uname -r` says."""
    packages: tuple[str, ...] = field(converter=_texts)
    """NAME=VERSION of each package that it is from."""
    modules: tuple[str, ...] = field(converter=_texts)
    """File names, in the order in which to load them."""


@frozen
class KernelCache:
    """A folder with a folder for each kernel, complete or absent."""

    folder: Path

    @classmethod
    def of_user(cls) -> KernelCache:
        """The user's: below XDG_CACHE_HOME, or ~/.cache."""
        base = os.environ.get(_CACHE_VARIABLE) or Path.home() / ".cache"
        return cls(Path(base) / "pytest-xenkvm" / "lab")

    def facts(self, name: str) -> Facts | None:
        """What is known about a kernel; None if it isn't there."""
        path = self.folder / name / _FACTS
        try:
            return Facts(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        except (ValueError, TypeError) as error:
            raise LabError(f"{path}: can't be read ({error}): run `xenkvm lab fetch {name}` again") from error

    def make(self) -> None:
        """Make the folder, if it isn't there. Raises LabError if that can't be done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> LabError:
        given = os.environ.get(_CACHE_VARIABLE)
        found = f"{_CACHE_VARIABLE} is {given}" if given else f"{_CACHE_VARIABLE} isn't set"
        return LabError(
            f"kernels can't be kept in {self.folder} ({error.strerror}): {found}, "
            "expected a folder that can be written to"
        )

    def size(self, name: str) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in (self.folder / name).rglob("*") if path.is_file())

    def kernel(self, name: str) -> Kernel | None:
        """Return a kernel that was fetched; None if it wasn't."""
        return None if self.facts(name) is None else self.fetched(name)

    def fetched(self, name: str) -> Kernel:
        """Return a kernel that was fetched. Raises LabError if it wasn't."""
        facts = self.facts(name)
        if facts is None:
            raise LabError(f"{name} isn't there: run `xenkvm lab fetch {name}`")
        folder = self.folder / name
        return Kernel(name, folder / _VMLINUX, tuple(folder / _MODULES / module for module in facts.modules))

    def keep(self, name: str, release: str, packages: tuple[str, ...], unpacked: Path) -> Facts:
        """Keep the kernel of packages that were unpacked into a folder, in place of an older one.

        It appears all at once, and two processes that fetch the same one don't disturb each other.
        """
        self.make()
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
        try:
            image = _only(unpacked, "vmlinuz*")
            (draft / _VMLINUX).write_bytes(vmlinux_of(image.read_bytes()))
            (draft / _MODULES).mkdir()
            names = []
            for module, content in modules_of(unpacked).items():
                names.append(f"{module}.ko")
                (draft / _MODULES / names[-1]).write_bytes(content)
            facts = Facts(release, packages, tuple(names))
            (draft / _FACTS).write_text(json.dumps(asdict(facts), indent=1), encoding="utf-8")
            self._put(draft, self.folder / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return facts

    def _put(self, draft: Path, place: Path) -> None:
        """Swap a finished folder in; what was there is removed."""
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder))
        try:
            if place.exists():
                place.rename(old / place.name)
            draft.chmod(0o755)
            draft.rename(place)
        finally:
            shutil.rmtree(old, ignore_errors=True)


def kernel_of_files(image: Path, modules: Path | None, folder: Path) -> Kernel:
    """A kernel of the user's, prepared in `folder`: a vmlinux or vmlinuz, and a folder below /lib/modules.

    Without modules, KVM must be built in. Raises LabError if it can't be used.
    """
    prepared = folder / _VMLINUX
    prepared.write_bytes(vmlinux_of(image.read_bytes()))
    paths = []
    for name, content in (modules_of(modules) if modules else {}).items():
        paths.append(folder / f"{name}.ko")
        paths[-1].write_bytes(content)
    return Kernel(str(image), prepared, tuple(paths))


def _only(folder: Path, pattern: str) -> Path:
    found = [path for path in folder.rglob(pattern) if path.is_file()]
    if not found:
        raise LabError(f"the kernel's packages hold no {pattern}: the archive is laid out in an unknown way")
    return found[0]

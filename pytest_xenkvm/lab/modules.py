"""Kernel modules: which ones KVM needs, uncompressed and in the order in which they can be loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.vmlinux import decompress

WANTED: Final = "kvm_amd"
"""TCG emulates AMD's SVM."""
_FILE: Final = re.compile(r"(?P<name>.+)\.ko(\.(xz|zst|gz))?$")
_DEPENDS: Final = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
"""In the section .modinfo, which modpost writes; so no modules.dep is needed, which packages may lack."""


def modules_of(folder: Path, wanted: str = WANTED) -> dict[str, bytes]:
    """Return the modules that `wanted` needs and itself, by name, in the order in which to load them.

    `folder` is a kernel's own below /lib/modules, or holds one. Raises LabError if a module is missing.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.ko*")):
        match = _FILE.fullmatch(path.name)
        if match:
            found.setdefault(_normal(match["name"]), path)
    if wanted not in found:
        raise LabError(
            f"{folder}: holds no kernel module {wanted}; expected a kernel's folder below /lib/modules"
        )
    loaded: dict[str, bytes] = {}
    _load(wanted, found, loaded, ())
    return loaded


def _load(name: str, found: dict[str, Path], loaded: dict[str, bytes], above: tuple[str, ...]) -> None:
    if name in loaded:
        return
    if name not in found or name in above:
        raise LabError(f"kernel module {above[-1]} needs {name}, which can't be loaded before it")
    content = decompress(found[name].read_bytes())
    for names in _DEPENDS.findall(content):
        for needed in filter(None, names.decode(errors="replace").split(",")):
            _load(_normal(needed), found, loaded, (*above, name))
    loaded[name] = content


def _normal(name: str) -> str:
    """File names have dashes where the kernel has underscores."""
    return name.replace("-", "_")

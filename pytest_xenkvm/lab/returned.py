"""Files that come back from a guest, which is not trusted."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pytest_xenkvm.lab.errors import LabError


def extract(source: BinaryIO, folder: Path) -> list[Path]:
    """Write the regular files of a tar stream below `folder`, and return their paths.

    Anything else in the stream is left out: links, devices. Raises LabError for a name that leads out of the
    folder, tarfile.TarError if the stream is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    top = folder.resolve()
    written = []
    with tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            name = PurePosixPath(member.name)
            path = top / name
            if ".." in name.parts or not path.parent.resolve().is_relative_to(top):
                raise LabError(f"the guest sent a file {member.name!r}, which would lie outside of {folder}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # never through a link that lies there
            with path.open("xb") as file:
                shutil.copyfileobj(content, file)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            written.append(path)
    return written

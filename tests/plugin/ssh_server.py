"""An SSH server on this machine, for workers that are reached by SSH."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import pytest

import pytest_xenkvm

_PATIENCE: Final = 20.0
"""Seconds in which a server has to come up."""
_PRIVILEGE_SEPARATION: Final = Path("/run/sshd")
"""Without this folder a server of root's doesn't start."""

_SERVER: Final = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH={package}
"""
_CLIENT: Final = """
Host worker
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking no
  LogLevel ERROR
"""


@pytest.fixture(scope="session")
def ssh_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `--tx` takes for a worker with this Python, reached by SSH."""
    server = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    keygen = shutil.which("ssh-keygen")
    if server is None or keygen is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd and ssh: install OpenSSH's server and client")
    if os.geteuid() == 0:
        _PRIVILEGE_SEPARATION.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = {"port": port, "folder": folder, "package": Path(pytest_xenkvm.__file__).parents[1]}
    (folder / "sshd_config").write_text(_SERVER.format_map(values))
    (folder / "ssh_config").write_text(_CLIENT.format_map(values))
    running = subprocess.Popen([server, "-D", "-f", folder / "sshd_config", "-E", folder / "log"])
    try:
        _wait(running, port, folder / "log")
        yield f"ssh=worker//ssh_config={folder}/ssh_config//python={sys.executable}"
    finally:
        running.terminate()
        running.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = monotonic() + _PATIENCE
    while server.poll() is None and monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            sleep(0.05)
        else:
            return
    pytest.fail(f"no SSH server: {log.read_text()}")

"""A third party's plugin is installed beside pytest-xenkvm, and run as its users would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

PLUGIN: Final = Path(__file__).parent / "sample-plugin"
UNWANTED: Final = {"PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTHONPATH"}

PROGRAMS: Final = {
    "pytest": "import sys, pytest; sys.exit(pytest.main())",
    "xenkvm": "from pytest_xenkvm.cli.main import main; main()",
}

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed the plugin into, without any network."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("installed")
    shutil.copytree(PLUGIN, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return target


@pytest.fixture
def command(installed: Path, tmp_path: Path) -> Command:
    """Runs pytest or xenkvm with the plugin installed, in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}

    def command_(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAMS[program], *arguments],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(installed), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
        )

    return command_


def test_pytest_finds_all_of_it(command: Command) -> None:
    """The rule judges, the kernel is replayed on, the VMM takes part, and the hooks see the replay."""
    options = ["--xenkvm-vmm=sample", "--xenkvm-profile=sample-7.2", "--xenkvm-rules=sample", "-rx"]
    done = command("pytest", "--xenkvm-trace=@linux-boot-1vcpu", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "VMM under test: sample VMM 1.0" in lines
    assert any("sample.implements (SHOULD): event 11 (line 13)" in line for line in lines), done.stdout
    counts = dict(line.removeprefix("sample: ").rsplit(": ", 1) for line in lines if "sample: " in line)
    assert counts["replay of linux-boot-1vcpu.xkt on sample-7.2"] == "1"
    assert counts["hypercall begun"] == counts["hypercall done by the guest"] == "2346"
    assert int(counts["ioctl done by the VMM"]) > 2
    assert counts["sample.implements violated"] == "1"


def test_the_command_line_finds_what_serves_both(command: Command) -> None:
    """`xenkvm` knows the rule, the kernel and the VMM, too."""
    done = command("xenkvm", "replay", "@linux-boot-1vcpu", "--vmm=sample")
    assert "VMM sample VMM 1.0" in done.stdout
    assert "sample.implements (SHOULD): violated" in done.stdout
    assert "sample-7.2  Linux 7.2 with" in command("xenkvm", "profiles").stdout

"""What the options ask for is checked before anything runs: one sentence, exit code 4."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--xenkvm-trace=none.xkt"], "*none.xkt: there is no such file or folder"),
        (["--xenkvm-trace=*.xkt"], "*there are no traces here"),
        (["--xenkvm-trace=@none"], "@none: there is no bundled trace of this name (known: *@linux-boot*)"),
        (["--xenkvm-profile=linux-5.0"], "there is no profile 'linux-5.0'; there are auto, linux-6.12*"),
        (["--xenkvm-engine=qemu"], "there is no engine 'qemu'; there are model, unicorn"),
        (["--xenkvm-rules=demo,demo.answer"], "no rule matches 'demo.answer'; did you mean demo.answered? *"),
        (["--xenkvm-vmm="], "--xenkvm-vmm: names no VMM behaviour; leave it out to replay as recorded"),
        (["--xenkvm-vmm=nowhere"], "--xenkvm-vmm: there is no VMM behaviour 'nowhere': *"),
        (["--xenkvm-vmm=nowhere:Vmm"], "--xenkvm-vmm: the VMM behaviour 'nowhere:Vmm' can't be imported: *"),
        (["-o", "xenkvm_vmm=os:Vmm"], "--xenkvm-vmm: the VMM behaviour 'os:Vmm' can't be imported: *"),
        (["-o", "xenkvm_traces=none.xkt"], "*none.xkt: there is no such file or folder"),
        (["-o", "xenkvm_profile=linux-5.0"], "there is no profile 'linux-5.0'; *"),
        (["-o", "xenkvm_engine=qemu"], "there is no engine 'qemu'; there are model, unicorn"),
        (["-o", "xenkvm_rules=none"], "no rule matches 'none'; *"),
    ],
)
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["plain", "-n2"])
def test_a_wrong_option_is_a_usage_error(
    project: pytest.Pytester, args: list[str], sentence: str, workers: tuple[str, ...]
) -> None:
    """A name that nothing answers to ends the run before it begins; with xdist, before workers start."""
    plugins = ["-p", "pytest_xenkvm.plugin.entry", "-p", "xdist.plugin", "-p", "xdist.looponfail"]
    result = project.runpytest_inprocess(*plugins, *args, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {sentence}"])
    assert "Traceback" not in result.stderr.str()


def test_an_argument_that_names_no_trace_is_left_to_pytest(run: Run) -> None:
    """A node id of a trace that nobody knows is refused as any path is that isn't there."""
    result = run("none.xkt::replay")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: file or directory not found: none.xkt::replay"])


def test_help_is_given_whatever_else_is_wrong(run: Run) -> None:
    """`--help` lists the options even if the ini file is wrong."""
    result = run("--help", "-o", "xenkvm_profile=linux-5.0")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["*--xenkvm-trace=TRACE*", "*--xenkvm-profile=NAME*", "*xenkvm_traces (linelist)*"]
    )

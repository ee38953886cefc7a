"""What docs/how-to/ci.md tells other projects to copy: it is well-formed, and says what there is."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from pytest_xenkvm.cli.main import COMMANDS, run
from pytest_xenkvm.core.profile import PROFILES
from pytest_xenkvm.trace.files import bundled_traces

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "how-to" / "ci.md").read_text(encoding="utf-8")
HOOKS: Final = ROOT / ".pre-commit-hooks.yaml"
WRITES: Final = re.compile(r"--(?:xenkvm-badge|xenkvm-report|junitxml)=(\S+)")


def recipes(language: str) -> list[str]:
    """The code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def recipe(key: str) -> Any:
    """The first YAML block with this key at its top, read."""
    return next(found for found in map(yaml.safe_load, recipes("yaml")) if key in found)


def commands(job: dict[str, Any]) -> str:
    """What a job of GitHub Actions runs."""
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


def test_options_and_commands_exist() -> None:
    """Each option of the plugin and each subcommand that the page names is one."""
    options = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--xenkvm-[\w-]+", PAGE)) <= set(re.findall(r"--xenkvm-[\w-]+", options))
    assert set(re.findall(r"^ *(?:- )?xenkvm (\w+)", PAGE, re.MULTILINE)) <= set(COMMANDS)


def test_profiles_exist() -> None:
    """Each kernel that a recipe names is one, and the recipes go through all of them."""
    workflow, pipeline = recipe("jobs"), recipe("xenkvm")
    assert workflow["jobs"]["conformance"]["strategy"]["matrix"]["profile"] == list(PROFILES)
    assert pipeline["xenkvm"]["parallel"]["matrix"] == [{"PROFILE": list(PROFILES)}]
    assert set(re.findall(r"\blinux-\d+\.\d+\b", PAGE)) == set(PROFILES)


def test_the_workflow_is_sound() -> None:
    """GitHub's workflow may only read, pins its actions, and each of its steps uses one or runs something."""
    workflow = recipe("jobs")
    jobs = {**workflow["jobs"], "badge": recipe("badge")["badge"]}
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    assert workflow[True] == {"push": None, "pull_request": None}
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in jobs.items():
        assert job.get("needs", next(iter(jobs))) in jobs
        assert job["runs-on"].startswith("ubuntu-")
        assert all(("uses" in step) != ("run" in step) for step in job["steps"]), name
        assert all(
            re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/a@v1")) for step in job["steps"]
        )


def test_what_is_written_is_kept() -> None:
    """Files that the recipes write, however the rules came out, are artifacts; the badge is published."""
    job = recipe("jobs")["jobs"]["conformance"]
    upload = job["steps"][-1]
    assert upload["if"] == "${{ !cancelled() }}"
    assert set(upload["with"]["path"].split()) == set(WRITES.findall(commands(job)))
    publish = recipe("badge")["badge"]
    assert publish["steps"][1]["with"]["name"] == upload["with"]["name"].replace(
        "${{ matrix.profile }}", "linux-7.3"
    )
    pipeline = recipe("xenkvm")["xenkvm"]
    kept = {*pipeline["artifacts"]["paths"], pipeline["artifacts"]["reports"]["junit"]}
    assert pipeline["artifacts"]["when"] == "always"
    assert kept == set(WRITES.findall("\n".join(pipeline["script"])))


def test_the_tox_environments_exist() -> None:
    """The recipe for tox describes an environment for each kernel and writes into its folder."""
    (text,) = recipes("ini")
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    envs, section = parser.sections()
    assert section == f"testenv:{parser[envs]['env_list']}"
    names = re.findall(r"linux_\w+", section)
    assert [name.replace("linux_", "linux-", 1).replace("_", ".") for name in names] == list(PROFILES)
    for name, kernel in zip(names, PROFILES, strict=True):
        assert f"{name}: PROFILE = {kernel}" in parser[section]["set_env"]
    assert all(path.startswith("{env_dir}/") for path in WRITES.findall(parser[section]["commands"]))


def test_shell_has_no_syntax_error() -> None:
    """What the recipes run can be parsed by any POSIX shell."""
    lines = [*recipes("sh"), *recipe("xenkvm")["xenkvm"]["script"]]
    lines += [commands(job) for job in (recipe("jobs")["jobs"]["conformance"], recipe("badge")["badge"])]
    for line in lines:
        text = re.sub(r"\$\{\{.*?\}\}", "x", line)  # GitHub fills these in before the shell sees them
        done = subprocess.run(["/bin/sh", "-n", "-c", text], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_hook_that_projects_name_exists() -> None:
    """The ids in the recipes for pre-commit are those of this repository's hooks."""
    (known,) = [hook["id"] for hook in yaml.safe_load(HOOKS.read_text(encoding="utf-8"))]
    assert [hook["id"] for hook in recipe("repos")["repos"][0]["hooks"]] == [known]
    assert [hook["id"] for hook in recipe("hooks")["hooks"]] == [known]


def test_the_hook_is_valid() -> None:
    """pre-commit takes the file of hooks."""
    pytest.importorskip("pre_commit", reason="pre-commit is not installed")
    done = subprocess.run([sys.executable, "-m", "pre_commit", "validate-manifest", HOOKS], check=False)
    assert done.returncode == 0


def test_the_hook_takes_traces() -> None:
    """The hook looks at .xkt files; as the recipe has it, at JSON Lines too."""
    (hook,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    (wider,) = recipe("hooks")["hooks"]
    names = ["traces/boot.xkt", "a.jsonl", "a.jsonl.gz", "xkt.py", "boot.xkt.md", "a.json"]
    assert [name for name in names if re.search(hook["files"], name)] == names[:1]
    assert [name for name in names if re.search(wider["files"], name)] == names[:3]


def test_the_hook_tells_broken_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run as pre-commit does, with files appended, the hook fails for a broken trace and names only that."""
    (hook,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    program, *arguments = shlex.split(hook["entry"])
    assert program == "xenkvm"
    whole = bundled_traces()["linux-boot-1vcpu"]
    (tmp_path / "cut.xkt").write_bytes(whole.read_bytes()[:5000])
    assert run([*arguments, str(whole)]) == 0
    assert capsys.readouterr().out == ""
    assert run([*arguments, str(whole), str(tmp_path / "cut.xkt")]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path}/cut.xkt: is cut off")

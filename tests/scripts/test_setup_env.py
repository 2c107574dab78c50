"""The set-up of demo.sh and test.sh, with a Python that only pretends: what it does, and what stops it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Answers like Python 3.11 with a venv module; logs pip's calls; runs nothing.
FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
    "-c import sys"*) echo "${FAKE_VERSION:-3.11}" ;;
    "-c import ensurepip"*) exit "${FAKE_NO_VENV:-0}" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") [[ $3 == --version ]] && exit 0
        echo "$@" >>"$FAKE_LOG"
        sleep "${FAKE_PIP_SECONDS:-0}"
        [[ -z ${FAKE_PIP_ERROR:-} ]] || { echo "$FAKE_PIP_ERROR"; exit 1; }
        if [[ $3 == download ]]; then
            [[ -z ${FAKE_NO_INDEX:-} ]] || exit 1
            wheel=${!#}
            touch "${@: -2:1}/${wheel/==/-}-py3-none-any.whl"
        elif [[ ${!#} == torch* ]]; then
            [[ -z ${FAKE_NO_INDEX:-} ]] || exit 1
            mkdir "${@: -2:1}"
        fi ;;
    *) printf 'ran'; printf ' <%s>' "$@"; echo
        [[ $2 != pytest ]] || echo "wheels ${MINDFORMERS_WHEELS:-none}, torch ${TORCH_FOLDER:-none}" >&2 ;;
esac
"""


class Copy:
    """A copy of what the set-up needs, outside the tree, and the environment to run it in."""

    def __init__(self, folder: Path):
        self.root = folder / "project"
        self.tools = folder / "tools"
        self.log = folder / "pip.log"
        (self.root / "scripts").mkdir(parents=True)
        self.tools.mkdir()
        for name in ("setup.cfg", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        for name in ("setup_env.sh", "demo.sh", "test.sh", "real_models.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        for name in ("python3.11", "python3.10", "python3.12", "python3", "python"):
            self.tool(name, FAKE_PYTHON)
        self.environment = {
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "FAKE_LOG": str(self.log),
            "HOME": str(folder),
        }

    def tool(self, name: str, script: str) -> None:
        (self.tools / name).write_text(script)
        (self.tools / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.root / "scripts" / script), *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        out, error = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    @property
    def installs(self) -> list[str]:
        return self.given_to("install")

    def given_to(self, command: str) -> list[str]:
        """The last argument of each call of this pip command."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[-1] for line in lines if line.split()[2] == command and "--require-hashes" not in line]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def only_line(result: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a run that failed and printed nothing else."""
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_first_run_installs_and_second_does_not(copy):
    first, second = copy.run("demo.sh"), copy.run("demo.sh")
    assert first.returncode == second.returncode == 0
    assert "takes a few minutes" in first.stderr and second.stderr == ""
    assert copy.installs == ["."]
    assert "<--predict_data> <Once upon a time>" in second.stdout


def test_arguments_of_the_demo_are_passed_on(copy):
    result = copy.run("demo.sh", "--predict_data", "2 + 3 =", "--seed", "0")
    assert "<--predict_data> <2 + 3 => <--seed> <0>" in result.stdout


def test_the_test_extra_is_enough_for_the_tests_and_the_demo(copy):
    for script in ("demo.sh", "test.sh", "test.sh", "demo.sh"):
        assert copy.run(script).returncode == 0
    assert copy.installs == [".", ".[dev]", "torch==2.13.0+cpu"]


def test_wheels_of_mindformers_and_torch_are_fetched_once(copy):
    first, second = copy.run("test.sh"), copy.run("test.sh")
    fetched = copy.given_to("download")
    assert len(fetched) == len(set(fetched)) == 10 and fetched[0] == "mindformers==1.0.2"
    for result in (first, second):
        assert f"wheels {copy.root}/.venv/mindformers-wheels, torch {copy.root}/.venv/torch\n" in result.stderr
    assert copy.installs == [".[dev]", "torch==2.13.0+cpu"]


def test_tests_run_without_an_index_and_report_skips(copy):
    result = copy.run("test.sh", FAKE_NO_INDEX="1")
    assert result.returncode == 0
    *said, smollm2, last = result.stderr.splitlines()[-4:]
    assert said == [
        "mindformers 1.0.2 cannot be fetched: tests of its YAML files are skipped",
        "no CPU build of torch can be fetched: its test is skipped",
    ]
    assert smollm2.startswith("real_models.sh: SmolLM2-135M-Instruct.Q4_1.gguf cannot be fetched: ")
    assert last == "wheels none, torch none"
    assert copy.given_to("download")[0] == "mindformers==1.0.2"
    own = {"MINDFORMERS_WHEELS": "/else", "TORCH_FOLDER": "/there"}
    assert "wheels /else, torch /there\n" in copy.run("test.sh", **own).stderr


def test_arguments_of_the_tests_go_to_pytest_last(copy):
    lines = copy.run("test.sh", "-k", "x y").stdout.splitlines()
    assert [line.split("> <")[1].rstrip(">") for line in lines] == ["ruff", "ruff", "mypy", "pytest"]
    assert lines[-1].endswith("<pytest> <-n> <2> <--dist> <loadfile> <--durations> <15> <-k> <x y>")


def test_a_change_of_setup_cfg_installs_again(copy):
    copy.run("demo.sh")
    with (copy.root / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    copy.run("demo.sh")
    assert copy.installs == [".", "."]


def test_an_interrupted_setup_starts_again(copy):
    process = copy.start("demo.sh", FAKE_PIP_SECONDS="60")
    while not copy.installs:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (copy.root / ".venv" / "leftover").touch()
    assert copy.run("demo.sh").returncode == 0
    assert copy.installs == [".", "."]
    assert not (copy.root / ".venv" / "leftover").exists()


def test_a_broken_venv_is_recreated(copy):
    copy.run("demo.sh")
    (copy.root / ".venv" / "bin" / "python").unlink()
    assert copy.run("demo.sh").returncode == 0
    assert copy.installs == [".", "."]


def test_two_setups_at_once_install_once(copy):
    processes = [copy.start("demo.sh", FAKE_PIP_SECONDS="1") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("ran" in out for out, _ in outputs)
    assert copy.installs == ["."]


def test_wrong_python_version(copy):
    line = only_line(copy.run("demo.sh", FAKE_VERSION="3.8"))
    assert "3.10, 3.11 or 3.12 is needed" in line and "python3 is 3.8" in line
    assert not (copy.root / ".venv").exists()


def test_a_chosen_python_that_does_not_exist(copy):
    assert "/nowhere/python was not found" in only_line(copy.run("test.sh", PYTHON="/nowhere/python"))


def test_no_venv_module(copy):
    assert "has no venv module" in only_line(copy.run("demo.sh", FAKE_NO_VENV="1"))


def test_no_disk_space(copy):
    copy.tool("df", "#!/bin/sh\necho Filesystem\necho '/dev/x 9 9 1048576 50% /'\n")
    assert "1024 MiB of free disk space" in only_line(copy.run("test.sh"))
    assert not (copy.root / ".venv").exists()


def test_pip_errors_are_shown_as_a_tail(copy):
    log = "\n".join(f"line {number}" for number in range(50))
    result = copy.run("demo.sh", FAKE_PIP_ERROR=log)
    assert result.returncode == 1 and result.stdout == ""
    assert "line 49" in result.stderr and "line 40" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("demo.sh: pip could not install")


def test_a_full_disk_during_the_install(copy):
    result = copy.run("demo.sh", FAKE_PIP_ERROR="ERROR: [Errno 28] No space left on device")
    assert "the disk is full" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_no_network(copy):
    result = copy.run(
        "demo.sh",
        PYTHON=sys.executable,
        PIP_INDEX_URL="http://127.0.0.1:9",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_CACHE_DIR="1",
        PIP_RETRIES="0",
    )
    assert result.returncode == 1 and result.stdout == ""
    progress, error = result.stderr.splitlines()
    assert "takes a few minutes" in progress
    assert error.startswith("demo.sh: no network")

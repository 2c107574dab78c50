"""The README's commands run and print what it shows, and the docs are current."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bench
import bench_batch
import bench_pairs
import bench_ranks
import pytest

from inference.config.flags import FLAGS
from inference.kernels.build import KernelBuildError, library_path
from inference.launcher.arguments import build_command as launcher_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# A fenced block, and the text block that follows it at once: what it prints.
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
SET_UP = re.compile(r"^bash scripts/(demo|test)\.sh", re.MULTILINE)
BLOCKS = [match.groups() for match in BLOCK.finditer(README)]
COMMANDS = [(body, shown) for kind, body, shown in BLOCKS if kind == "bash" and not SET_UP.match(body)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like the repository, in which commands may write."""
    place = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (place / entry.name).symlink_to(entry)
    (place / "bin").mkdir()
    python = place / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with contextlib.suppress(KernelBuildError):
        library_path()
    return place


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("body", "shown"), COMMANDS, ids=[body.splitlines()[0][:70] for body, _ in COMMANDS])
def test_commands_run_and_print_the_shown_output(checkout, body, shown):
    if "--run_mode pipeline" in body:
        pytest.importorskip("apache_beam")
    done = run(checkout, "bash", "-euo", "pipefail", "-c", body)
    # Records that have a file of their own are only there.
    out = done.stdout
    assert out.strip() or "--save_file" in body
    if shown is not None:
        assert out == shown


def test_python_blocks_run_and_print_the_shown_output(checkout):
    ((_, body, shown),) = [block for block in BLOCKS if block[0] == "python"]
    done = run(checkout, sys.executable, "-c", body)
    assert done.stdout == shown
    assert done.stderr == ""


def test_the_shown_row_has_the_fields_of_a_row(checkout):
    (shown,) = re.findall(r"^```json\n(.*?)^```\n", README, re.MULTILINE | re.DOTALL)
    row = json.loads(shown)
    saved = [json.loads(line) for line in (checkout / "answers.jsonl").read_text().splitlines()]
    (real,) = [answer for answer in saved if answer["custom_id"] == row["custom_id"]]
    assert list(real) == list(row)
    timing = ("ttft_seconds", "total_seconds")
    assert [real[key] for key in real if key not in timing] == [row[key] for key in row if key not in timing]


def test_the_first_screen():
    """One sentence, two commands, one command with its output, then the measured table."""
    first, second = BLOCKS[:2]
    assert [line.partition("#")[0].split() for line in first[1].splitlines()] == [
        ["bash", "scripts/demo.sh"],
        ["bash", "scripts/test.sh"],
    ]
    assert second[2]
    assert README.index(second[1]) < README.index("<!-- bench -->") < README.index("<!-- /bench -->")
    assert README.index("<!-- bench -->") < README.index("\n## ")
    for name in ("demo.sh", "test.sh"):
        subprocess.run(["bash", "-n", str(ROOT / "scripts" / name)], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_the_guides_name_exist(page):
    """Each path in backquotes is the end of a file's or a folder's."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|md|sh|cfg|cpp|h))`", text))
    assert len(named) > 5
    folders = [ROOT / name for name in ("inference", "tests", "scripts", "configs", "docs", "examples", ".ci")]
    there = [f"/{path.relative_to(ROOT)}" for folder in folders for path in folder.rglob("*")]
    there += [f"/{path.name}" for path in ROOT.iterdir()]
    assert {name for name in named if not any(path.endswith(f"/{name.strip('/')}") for path in there)} == set()


def test_flags_that_the_pages_name_exist():
    known = {flag.name for flag in FLAGS} | {
        *("--config", "--predict_data", "--options", "--overwrite", "--no-stream", "--traceback", "--check", "--help"),
        *(
            "--force",
            "--harness",
            *(
                option
                for main in (bench.main, bench_batch.main, bench_pairs.main, bench_ranks.main)
                for parameter in main.params
                for option in parameter.opts
            ),
        ),
        # Of the harness and its entry.
        *("--add", "--converted", "--model", "--prompts", "--task", "--dtype", "--slots", "--reps"),
        *("--resume", "--retry_failed", "--no_echo"),
        # Of lm-eval.
        *("--tasks", "--model_args"),
        # Of msrun.
        *("--worker_num", "--local_worker_num"),
        *(option for parameter in launcher_command(print).params for option in parameter.opts),
        # Beam's, and those of the examples.
        *("--runner", "--direct_running_mode", "--yaml_pipeline_file", "--input", "--task_prefix"),
        *("--print_config", "--list_models", "--version", "--show_completion", "--section.key"),
    }
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text(encoding="utf-8")))
        assert {flag for flag in named - known if "." not in flag} == set(), page.name


def test_the_compatibility_page_has_every_flag_without_effect():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert [flag.name for flag in FLAGS if not flag.acted_on and f"`{flag.name}`" not in page] == []


def test_the_config_page_matches_the_schema():
    script = ROOT / "scripts" / "make_config_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run python scripts/make_config_docs.py"


def test_the_config_page_names_keys_types_and_defaults():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert "| `top_k` | integer from -1 | `50` | Sample among the k most likely tokens; 0 or -1 among all. |" in page
    assert "| `num_beams` | `1` only | `1` | Beam search; 1 is none. |" in page
    assert '| `device_target` | `CPU` / `Ascend` / `GPU` | `"CPU"` | Kind of device. |' in page
    assert "| `--top_k` | `generation_config.top_k` |" in page

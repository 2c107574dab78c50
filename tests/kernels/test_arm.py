"""The kernels on an Arm processor, emulated, where a cross compiler and QEMU are installed."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from inference.kernels.build import SOURCES, compile_sources, sets_of

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PROGRAM = Path(__file__).with_name("compare_sets.cpp")


def compare(compiler: str, level: str, machine: str, names: list[str], folder: Path, *emulator: str) -> str:
    """What the comparison of instruction sets prints; it must not find a difference.

    Args:
        level: of optimization. What is compared need not be fast, and -O3 takes the compiler most of a minute.
    """
    target, quick = folder / "compare", folder / "quick-c++"
    quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" {level}\n')
    quick.chmod(0o755)
    options = ["-static", f"-I{SOURCES}", str(PROGRAM)]
    compile_sources([str(quick)], sets_of(machine), folder, options, target)
    done = subprocess.run([*emulator, str(target), *names], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"no {COMPILER} or no {EMULATOR}")
def test_arm_instruction_sets_agree_with_plain(tmp_path: Path) -> None:
    names = [item.name for item in sets_of("aarch64")]
    assert compare(COMPILER, "-O1", "aarch64", names, tmp_path, EMULATOR, "-cpu", "max").count(":") == 3


@pytest.mark.slow
def test_a_machine_without_known_sets_uses_the_plain_one(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("no g++ for x86-64")
    assert compare(compiler, "-O0", "riscv64", ["plain"], tmp_path).startswith("plain: products 0.0")

"""Builds the CPU kernels with the machine's C++ compiler, once for each state of the sources.

Knows compilers and the cache directory; knows nothing about MindSpore. The library's name carries a hash of sources,
flags and compiler, so that a change builds anew and nothing stale is ever loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from inference.errors import InferenceError

SOURCES = Path(__file__).parent / "cpp"
CACHE_VARIABLE = "INFERENCE_KERNEL_CACHE"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-w")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")


class InstructionSet(NamedTuple):
    """An instruction set that the kernels are compiled for.

    Attributes:
        flags: what the compiler is told.
        define: what the dispatcher is told.
        needs: what the processor must have, as Linux names it in /proc/cpuinfo.
    """

    name: str
    flags: tuple[str, ...]
    define: str
    needs: frozenset[str] = frozenset()


# `plain` means vectors of four floats and nothing that a compiler may not know.
_PLAIN = InstructionSet("plain", ("-U__ARM_NEON", "-U__ARM_FEATURE_DOTPROD"), "")
_NEEDS_AVX2 = frozenset({"avx2", "fma", "f16c"})
_NEEDS_AVX512 = _NEEDS_AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_X86_SETS = (
    _PLAIN,
    InstructionSet("avx2", _AVX2, "-DWITH_AVX2", _NEEDS_AVX2),
    InstructionSet("avx512", _AVX512, "-DWITH_AVX512", _NEEDS_AVX512),
    InstructionSet("avx512_vnni", (*_AVX512, "-mavx512vnni"), "-DWITH_AVX512_VNNI", _NEEDS_AVX512 | {"avx512_vnni"}),
)
_ARM_SETS = (
    _PLAIN,
    InstructionSet("neon", ("-U__ARM_FEATURE_DOTPROD",), "-DWITH_NEON", frozenset({"asimd"})),
    InstructionSet("neon_dot", ("-march=armv8.2-a+dotprod",), "-DWITH_NEON_DOT", frozenset({"asimddp"})),
)
SETS = {"x86_64": _X86_SETS, "AMD64": _X86_SETS, "aarch64": _ARM_SETS, "arm64": _ARM_SETS}
CPUINFO = Path("/proc/cpuinfo")


class KernelBuildError(InferenceError):
    """The kernels could not be built; stock operators can take their place."""


@lru_cache(maxsize=1)
def library_path() -> Path:
    """The built library, building it first if need be. Safe when several processes ask at once.

    Raises:
        KernelBuildError: no compiler, or one that fails; the message holds its first error.
    """
    compiler, path = _target()
    if path.exists():
        return path
    with _locked(path.with_name("build.lock")):
        if not path.exists():
            _build(compiler, path)
    return path


def is_built() -> bool:
    """Whether `library_path` has nothing to build.

    Raises:
        KernelBuildError: no compiler.
    """
    return _target()[1].exists()


@lru_cache(maxsize=1)
def _target() -> tuple[str, Path]:
    """The compiler, and where its library belongs."""
    compiler = os.environ.get("CXX") or next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler) is None:
        raise KernelBuildError(f"no C++ compiler ({compiler or ', '.join(COMPILERS)}) is on the PATH", "install g++")
    return compiler, _cache_directory() / f"kernels-{_fingerprint(compiler)}.so"


def _cache_directory() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(given) if given else cache / "mindspore-inference"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelBuildError(
            f"the kernel cache {directory} cannot be made: {error.strerror}", f"set {CACHE_VARIABLE}"
        ) from error
    return directory


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    sets = [(item.name, item.flags) for item in sets_of_this_machine()]
    digest.update(repr((FLAGS, sets, platform.machine())).encode() + version)
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        library = Path(scratch) / "library.so"
        compile_sources([compiler], sets_of_this_machine(), Path(scratch), ["-shared"], library)
        library.replace(path)


def sets_of(machine: str) -> tuple[InstructionSet, ...]:
    """The instruction sets that processors of a kind may have (`x86_64`, as platform.machine() names it)."""
    return SETS.get(machine, (_PLAIN,))


@lru_cache(maxsize=1)
def sets_of_this_machine() -> tuple[InstructionSet, ...]:
    """The instruction sets that this processor has.

    Others are not compiled: a library that holds code for them crashes, because the linker keeps one copy of an inline
    function that several sets use, and a table's initializer may be vectorized.
    """
    features = _processor_features()
    return tuple(item for item in sets_of(platform.machine()) if item.needs <= features)


def _processor_features() -> frozenset[str]:
    """The features that Linux lists for the first processor; none if it does not say."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(listed, "").split())


def compile_sources(
    compiler: list[str], sets: Sequence[InstructionSet], folder: Path, options: list[str], target: Path
) -> None:
    """Compiles the kernels for each of the instruction sets, and all together into `target`.

    Args:
        folder: for what is made on the way.
        options: of the last call.

    Raises:
        KernelBuildError: the compiler fails.
    """
    jobs = [_object(compiler, folder, item) for item in sets]
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        list(pool.map(_compile, jobs))
    defines = [item.define for item in sets if item.define]
    files = [str(SOURCES / name) for name in ("library.cpp", "pool.cpp", "group.cpp")] + [job[-1] for job in jobs]
    _compile([*compiler, *FLAGS, *defines, *files, *options, "-pthread", "-o", str(target)])


def _object(compiler: list[str], folder: Path, item: InstructionSet) -> list[str]:
    name = item.name
    defines = [f"-DKERNEL_ISA=isa_{name}", f'-DKERNEL_NAME="{name}"']
    return [
        *compiler,
        *FLAGS,
        *item.flags,
        *defines,
        "-c",
        str(SOURCES / "kernels.cpp"),
        "-o",
        str(folder / f"{name}.o"),
    ]


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise KernelBuildError(f"{command[0]} could not build the kernels: {first.strip()[:300]}")


def main() -> None:
    """Builds the library ahead of its first use, for an installer; exits with 1 and one line where it cannot."""
    try:
        print(library_path())
    except KernelBuildError as error:
        sys.exit(f"{error}: stock operators will be used, which are slower")

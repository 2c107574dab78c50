"""Build the CPU kernels with the machine's C++ compiler, once per version of the sources.

Knows compilers and the cache directory; knows nothing about MindSpore. There is one library per instruction set, and
only the processor's best is built unless a test requests another. A library's name contains a hash of the sources,
flags and compiler, so any change triggers a rebuild and a stale library is never loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from inference.errors import InferenceError

SOURCES = Path(__file__).parent / "cpp"
CACHE_VARIABLE = "INFERENCE_KERNEL_CACHE"
# Sources compiled once per instruction set, slowest first; and sources compiled once.
SET_SOURCES = ("linear_float.cpp", "kernels.cpp", "attention.cpp", "linear_quantized.cpp", "latent.cpp")
SOURCES_FOR_ALL = ("library.cpp", "pool.cpp", "group.cpp")
# Build time on a slow core, and the interval between progress lines.
SECONDS = 30
INTERVAL = 5.0
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-w")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")


class InstructionSet(NamedTuple):
    """An instruction set that the kernels are compiled for.

    Attributes:
        flags: compiler flags.
        needs: required processor features, as Linux names them in /proc/cpuinfo.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()


# `plain` uses vectors of four floats and nothing compiler-specific.
_PLAIN = InstructionSet("plain", ("-U__ARM_NEON", "-U__ARM_FEATURE_DOTPROD"))
_NEEDS_AVX2 = frozenset({"avx2", "fma", "f16c"})
_NEEDS_AVX512 = _NEEDS_AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_X86_SETS = (
    _PLAIN,
    InstructionSet("avx2", _AVX2, _NEEDS_AVX2),
    InstructionSet("avx512", _AVX512, _NEEDS_AVX512),
    InstructionSet("avx512_vnni", (*_AVX512, "-mavx512vnni"), _NEEDS_AVX512 | {"avx512_vnni"}),
)
_ARM_SETS = (
    _PLAIN,
    InstructionSet("neon", ("-U__ARM_FEATURE_DOTPROD",), frozenset({"asimd"})),
    InstructionSet("neon_dot", ("-march=armv8.2-a+dotprod",), frozenset({"asimddp"})),
)
SETS = {"x86_64": _X86_SETS, "AMD64": _X86_SETS, "aarch64": _ARM_SETS, "arm64": _ARM_SETS}
CPUINFO = Path("/proc/cpuinfo")


class KernelBuildError(InferenceError):
    """The kernels could not be built; stock operators can replace them."""


def no_progress(line: str) -> None:
    """Discard a progress line."""


def library_path(name: str | None = None, say: Callable[[str], None] = no_progress) -> Path:
    """Return the path of an instruction set's library, building it first if necessary.

    Safe when several processes call it at once.

    Args:
        name: the instruction set; None for the best that this processor supports.
        say: receives lines of build progress.

    Raises:
        KernelBuildError: there is no compiler, it fails (the message holds its first error), or the cache is unsafe.
    """
    wanted = name or best_set()
    for item in sets_of_this_machine():
        if item.name == wanted:
            return _library_path(item, say)
    raise KernelBuildError(f"this processor does not have the instruction set {wanted}")


def best_set() -> str:
    """Return the name of the best instruction set that this processor supports."""
    return sets_of_this_machine()[-1].name


_paths: dict[str, Path] = {}


def _library_path(chosen: InstructionSet, say: Callable[[str], None]) -> Path:
    if chosen.name not in _paths:
        compiler = _compiler()
        path = cache_directory() / f"kernels-{chosen.name}-{_fingerprint(compiler, chosen)}.so"
        if not _is_sound(path):
            with _locked(path.with_name("build.lock")):
                if not _is_sound(path):
                    if path.exists():
                        say(f"{path} has changed since it was built: building it again")
                    _build(compiler, chosen, path, say)
        _paths[chosen.name] = path
    return _paths[chosen.name]


def _compiler() -> str:
    compiler = os.environ.get("CXX") or next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler) is None:
        raise KernelBuildError(f"no C++ compiler ({compiler or ', '.join(COMPILERS)}) is on the PATH", "install g++")
    return compiler


def cache_directory() -> Path:
    """Return the folder of built libraries, creating it if necessary.

    Anyone who can write to it can run code as this user.

    Raises:
        KernelBuildError: it cannot be created, belongs to another user, or is writable by others.
    """
    given = os.environ.get(CACHE_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(given) if given else cache / "mindspore-inference"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.lstat()
    except OSError as error:
        raise KernelBuildError(
            f"the kernel cache {directory} cannot be created: {error.strerror}", f"set {CACHE_VARIABLE}"
        ) from error
    problem = _what_is_unsafe(status, stat.S_ISDIR)
    if problem:
        raise KernelBuildError(
            f"the kernel cache {directory} {problem}", f"set {CACHE_VARIABLE} to a folder that only you can write to"
        )
    return directory


def _what_is_unsafe(status: os.stat_result, is_kind: Callable[[int], bool]) -> str | None:
    """Return why a file or folder is unsafe to load from; None if it is safe."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not is_kind(status.st_mode):
        return "is of the wrong kind"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by other users"
    return None


def _is_sound(path: Path) -> bool:
    """Return whether a library exists and is unchanged since it was built.

    Raises:
        KernelBuildError: the file is a link, belongs to another user, or is writable by others.
    """
    content, digest = _own_bytes(path), _own_bytes(path.with_suffix(".sha256"))
    return content is not None and digest is not None and hashlib.sha256(content).hexdigest().encode() == digest


def _own_bytes(path: Path) -> bytes | None:
    """Return the contents of a file that this user owns, without following links; None if it does not exist."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelBuildError(f"{path} cannot be trusted: {error.strerror}", "remove it") from error
    with os.fdopen(file, "rb") as opened:
        problem = _what_is_unsafe(os.fstat(file), stat.S_ISREG)
        if problem:
            raise KernelBuildError(f"{path} {problem}", "remove it")
        return opened.read()


def _fingerprint(compiler: str, chosen: InstructionSet) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    digest.update(repr((FLAGS, chosen.flags, platform.machine())).encode() + version)
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelBuildError(f"{path} cannot be locked: {error.strerror}", "remove it") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _build(compiler: str, chosen: InstructionSet, path: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        library, digest = Path(scratch) / "library.so", Path(scratch) / "digest"
        compile_sources([compiler], (chosen,), Path(scratch), ["-shared"], library, say)
        library.chmod(0o700)
        digest.write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        digest.chmod(0o600)
        digest.replace(path.with_suffix(".sha256"))
        library.replace(path)


def sets_of(machine: str) -> tuple[InstructionSet, ...]:
    """Return the instruction sets of an architecture, named as platform.machine() does (`x86_64`)."""
    return SETS.get(machine, (_PLAIN,))


@lru_cache(maxsize=1)
def sets_of_this_machine() -> tuple[InstructionSet, ...]:
    """Return the instruction sets that this processor supports, best last.

    Each has its own library: the linker keeps one copy of an inline function that several sets use, and that copy may
    contain instructions that the processor does not support.
    """
    features = _processor_features()
    return tuple(item for item in sets_of(platform.machine()) if item.needs <= features)


def _processor_features() -> frozenset[str]:
    """Return the features that Linux lists for the first processor; empty if it lists none."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return frozenset({"asimd", "asimddp"})  # all Arm Macs have them
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return frozenset(next(listed, "").split())


def compile_sources(
    compiler: list[str],
    sets: Sequence[InstructionSet],
    folder: Path,
    options: list[str],
    target: Path,
    say: Callable[[str], None] = no_progress,
) -> None:
    """Compile the kernels for each instruction set and link them into `target`.

    Args:
        folder: receives the object files.
        options: linker options.
        say: receives lines of build progress.

    Raises:
        KernelBuildError: the compiler fails.
    """
    names = ", ".join(item.name for item in sets)
    jobs = [_object(compiler, folder, item, name) for name in SET_SOURCES for item in sets]
    tables = "".join(f"SET(isa_{item.name})" for item in sets)
    jobs += [[*compiler, *FLAGS, f"-DKERNEL_SETS={tables}", *_to_object(folder, name, "")] for name in SOURCES_FOR_ALL]
    say(f"building the CPU kernels for {names}, once on this machine: about {SECONDS} s of work for the processor")
    last = time.monotonic()
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        for done, finished in enumerate(as_completed([pool.submit(_compile, job) for job in jobs]), 1):
            finished.result()
            if time.monotonic() - last >= INTERVAL:
                last = time.monotonic()
                say(f"building the CPU kernels: {done} of {len(jobs)} files")
    _compile([*compiler, *FLAGS, *(job[-1] for job in jobs), *options, "-pthread", "-o", str(target)])


def _object(compiler: list[str], folder: Path, item: InstructionSet, name: str) -> list[str]:
    defines = [f"-DKERNEL_ISA=isa_{item.name}", f'-DKERNEL_NAME="{item.name}"']
    return [*compiler, *FLAGS, *item.flags, *defines, *_to_object(folder, name, f"-{item.name}")]


def _to_object(folder: Path, name: str, suffix: str) -> list[str]:
    level = "-O2" if name in SOURCES_FOR_ALL else "-O3"
    return [level, "-c", str(SOURCES / name), "-o", str(folder / f"{Path(name).stem}{suffix}.o")]


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise KernelBuildError(f"{command[0]} could not build the kernels: {first.strip()[:300]}")


def main() -> None:
    """Build the library before its first use, for installers; on failure, print one line and exit with 1."""
    try:
        print(library_path(say=lambda line: print(line, file=sys.stderr)))
    except KernelBuildError as error:
        sys.exit(f"{error}: stock operators will be used, which are slower")

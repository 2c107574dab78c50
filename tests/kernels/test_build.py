"""Which instruction sets are compiled, and what the cache of built kernels trusts."""

from __future__ import annotations

import os
import platform
import stat
from pathlib import Path

import pytest

from inference.kernels import build
from inference.kernels.build import InstructionSet, KernelBuildError

ZEN3 = "flags\t\t: fpu sse sse2 fma f16c avx avx2 vaes\n"
SKYLAKE = "flags\t\t: fpu fma f16c avx avx2 avx512f avx512dq avx512bw avx512vl\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (ZEN3, ["plain", "avx2"]),
        (SKYLAKE, ["plain", "avx2", "avx512"]),
        (SKYLAKE.replace("avx512vl", "avx512vl avx512_vnni"), ["plain", "avx2", "avx512", "avx512_vnni"]),
        ("processor\t: 0\n", ["plain"]),
    ],
)
def test_only_supported_instruction_sets_are_offered(
    cpuinfo: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library with code for another set crashed while it was loaded, on a processor without AVX-512."""
    (tmp_path / "cpuinfo").write_text("model name\t: some\n" + cpuinfo)
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    build.sets_of_this_machine.cache_clear()
    assert [item.name for item in build.sets_of_this_machine()] == expected
    assert build.best_set() == expected[-1]
    build.sets_of_this_machine.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a compiler that writes its arguments to what it is asked for."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\nall="$*"\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && echo "$all" > "$2"; shift; done\nexit 0\n'
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_paths", {})
    return tmp_path / "cache"


def build_again(monkeypatch: pytest.MonkeyPatch, lines: list[str] | None = None) -> Path:
    monkeypatch.setattr(build, "_paths", {})
    return build.library_path(say=print if lines is None else lines.append)


def test_one_set_is_built_once_into_a_folder_of_our_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    path = build.library_path(say=lines.append)
    assert path.parent == cache and f"kernels-{build.best_set()}-" in path.name
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o700
    assert len(lines) == 1 and f"building the CPU kernels for {build.best_set()}, once" in lines[0]
    assert sorted(item.suffix for item in cache.iterdir()) == [".lock", ".sha256", ".so"]
    written = path.stat().st_mtime_ns
    assert build_again(monkeypatch, lines) == path and path.stat().st_mtime_ns == written and len(lines) == 1


def test_a_long_build_reports_its_progress(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "INTERVAL", 0.0)
    lines: list[str] = []
    build.library_path(say=lines.append)
    count = len(build.SET_SOURCES) + len(build.SOURCES_FOR_ALL)
    assert lines[1:] == [f"building the CPU kernels: {done} of {count} files" for done in range(1, count + 1)]


def test_every_source_file_is_compiled() -> None:
    there = {path.name for path in build.SOURCES.glob("*.cpp")}
    assert there == {*build.SET_SOURCES, *build.SOURCES_FOR_ALL}


def test_a_changed_library_is_rebuilt(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library_path()
    built = path.read_bytes()
    path.write_bytes(b"something else")
    lines: list[str] = []
    assert build_again(monkeypatch, lines) == path
    # The compiler's arguments name a folder that differs from build to build.
    assert path.read_bytes() != b"something else" and len(path.read_bytes()) == len(built)
    assert lines[0] == f"{path} has changed since it was built: building it again"


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o1777])
def test_a_folder_writable_by_others_is_rejected(cache: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    build.library_path()
    cache.chmod(mode)
    with pytest.raises(KernelBuildError, match=f"{cache} can be written to by other users"):
        build_again(monkeypatch)


def test_another_users_folder_is_rejected(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.library_path()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KernelBuildError, match=f"{cache} belongs to another user"):
        build_again(monkeypatch)


def test_links_are_not_followed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library_path()
    for file in (path, path.with_suffix(".sha256")):
        kept = file.read_bytes()
        (tmp_path / "elsewhere").write_bytes(kept)
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(KernelBuildError, match=f"{file} cannot be trusted"):
            build_again(monkeypatch)
        file.unlink()
        file.write_bytes(kept)
        file.chmod(0o600)
    cache.rename(tmp_path / "moved")
    cache.symlink_to(tmp_path / "moved")
    with pytest.raises(KernelBuildError, match="is a symbolic link"):
        build_again(monkeypatch)


def test_a_library_writable_by_others_is_rejected(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library_path()
    path.chmod(0o722)
    with pytest.raises(KernelBuildError, match=f"{path} can be written to by other users"):
        build_again(monkeypatch)


def test_the_lock_does_not_change_the_locked_file(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(0o700)
    precious = tmp_path / "precious"
    precious.write_text("text")
    (cache / "build.lock").write_text("text")
    build.library_path()
    assert (cache / "build.lock").read_text() == "text"
    next(cache.glob("*.so")).unlink()
    (cache / "build.lock").unlink()
    (cache / "build.lock").symlink_to(precious)
    build._paths.clear()
    with pytest.raises(KernelBuildError, match="build.lock cannot be locked"):
        build.library_path()
    assert precious.read_text() == "text"


def test_a_compiler_that_fails_is_quoted(cache: Path) -> None:
    Path(os.environ["CXX"]).write_text('#!/bin/sh\necho "x.cpp:1: error: no such thing" >&2\nexit 1\n')
    with pytest.raises(KernelBuildError, match="could not build the kernels: x.cpp:1: error: no such thing"):
        build.library_path()


def test_an_instruction_set_of_another_processor_has_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "sets_of_this_machine", lambda: (InstructionSet("plain", ()),))
    with pytest.raises(KernelBuildError, match="this processor does not have the instruction set avx2"):
        build.library_path("avx2")

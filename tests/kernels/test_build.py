"""Which instruction sets are compiled."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from inference.kernels import build

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
def test_only_what_the_processor_has_is_compiled(
    cpuinfo: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library with code for another set crashed while it was loaded, on a processor without AVX-512."""
    (tmp_path / "cpuinfo").write_text("model name\t: some\n" + cpuinfo)
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    build.sets_of_this_machine.cache_clear()
    assert [item.name for item in build.sets_of_this_machine()] == expected
    build.sets_of_this_machine.cache_clear()

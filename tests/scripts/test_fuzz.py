"""Mutated files of each kind load or are refused in one line; `scripts/fuzz.py --count 2000` tries more."""

from __future__ import annotations

from pathlib import Path

import fuzz
import pytest

from inference.errors import InferenceError

COUNT, SEED, SECONDS = 200, 0, 10.0


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_mutated_files_load_or_are_rejected_in_one_line(name: str) -> None:
    if name == "gguf":
        pytest.importorskip("gguf", reason="it writes the file")
    assert [line for _, line in fuzz.run_kind(name, range(COUNT), SEED, SECONDS)] == []


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_the_good_files_load(name: str, tmp_path: Path) -> None:
    """So that mutated ones are not refused for another reason."""
    kind = fuzz.KINDS[name]
    kind.make(tmp_path)
    kind.load(tmp_path / kind.given if kind.given else tmp_path)


def test_a_loader_that_fails_is_found(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        data = path.read_bytes()
        if data == b"user's mistake":
            raise InferenceError("one line")
        raise KeyError(data)

    kind = fuzz.Kind(lambda directory: None, "x", lambda data, chance: data, load, "x")
    (tmp_path / "x").write_bytes(b"user's mistake")
    fuzz.load_case(kind, tmp_path, SECONDS)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(KeyError):
        fuzz.load_case(kind, tmp_path, SECONDS)


def test_a_loader_that_hangs_is_found(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        while True:
            pass

    kind = fuzz.Kind(lambda directory: None, "x", lambda data, chance: data, load, "x")
    with pytest.raises(fuzz.TooSlowError):
        fuzz.load_case(kind, tmp_path, 0.05)

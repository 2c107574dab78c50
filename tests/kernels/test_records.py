"""Records that Python writes and the kernels read: the same fields on both sides, and bounds on their numbers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from inference.errors import ConfigError
from inference.kernels import library, records
from inference.kernels.build import KernelBuildError, library_path

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

SOME = np.ones(4, np.float32)
ADDRESS = SOME.ctypes.data
MATRIX = records.MatrixRecord(0, ADDRESS)
ATTENTION = {
    **{"hidden": 8, "heads": 4, "kv_heads": 2, "head_size": 2, "block_size": 16},
    **{"norm": ADDRESS, "keys": ADDRESS, "values": ADDRESS, "qkv": MATRIX, "output": MATRIX},
}
EXPERTS = {
    **{"hidden": 8, "width": 4, "experts": 4, "chosen": 2, "groups": 2, "chosen_groups": 1, "group_best": 1},
    **{"norm": ADDRESS, "router": MATRIX, "gate_up": MATRIX, "down": MATRIX},
}


def test_field_offsets_equal_the_librarys() -> None:
    text = library._library().kernels_records().decode()
    assert text == records.describe() and text.count("\n") == 11
    assert "AttentionRecord" in text and "hidden:16:8" in text


@pytest.mark.parametrize(
    "change", [("hidden:16:8", "hidden:24:8"), ("heads:24:8", "haeds:24:8"), ("RanksRecord 32", "RanksRecord 24")]
)
def test_a_field_that_differs_is_named(change: tuple[str, str]) -> None:
    theirs = records.describe().replace(*change)
    with pytest.raises(records.RecordError, match=change[1]):
        records.check_layout(theirs)


@pytest.mark.parametrize(
    ("kind", "sound", "bad", "named"),
    [
        (records.AttentionRecord, ATTENTION, {"heads": 3}, "kv_heads"),
        (records.AttentionRecord, ATTENTION, {"hidden": 0}, "hidden"),
        (records.AttentionRecord, ATTENTION, {"hidden": 2**40}, "hidden"),
        (records.AttentionRecord, ATTENTION, {"block_size": 12}, "block_size"),
        (records.AttentionRecord, ATTENTION, {"block_size": 256}, "block_size"),
        (records.AttentionRecord, ATTENTION, {"scope": 4}, "scope"),
        (records.AttentionRecord, ATTENTION, {"window": -1}, "window"),
        (records.AttentionRecord, ATTENTION, {"keys": 0}, "keys"),
        (records.AttentionRecord, ATTENTION, {"qkv": records.MatrixRecord(99, ADDRESS)}, "format"),
        (records.ExpertsRecord, EXPERTS, {"chosen": 5}, "chosen"),
        (records.ExpertsRecord, EXPERTS, {"groups": 3}, "groups"),
        (records.ExpertsRecord, EXPERTS, {"group_best": 3}, "group_best"),
        (records.HeadRecord, {"hidden": 8, "vocabulary": 9, "norm": ADDRESS, "weight": MATRIX}, {"norm": 0}, "norm"),
        (records.EmbeddingRecord, {"hidden": 8, "tokens": 9, "weight": MATRIX}, {"hidden": -1}, "hidden"),
        (records.RanksRecord, {"group": ADDRESS}, {"group": 0}, "group"),
    ],
)
def test_numbers_out_of_range_are_rejected(
    kind: type[records.Record], sound: dict[str, Any], bad: dict[str, Any], named: str
) -> None:
    library.sound(kind(**sound))
    with pytest.raises(records.RecordError, match=f"{kind.__name__}: .*{named}"):
        library.sound(kind(**{**sound, **bad}))


def test_reading_stops_at_the_end_of_the_written_data() -> None:
    """Each cut of a program is refused; the address sanitizer saw a record read beyond its end."""
    numbers = records.FeedForwardRecord(hidden=8, width=4, norm=ADDRESS, gate_up=MATRIX, down=MATRIX).numbers()
    for length in range(1, len(numbers)):
        run = library._library().kernels_sublayers
        cut = np.array(numbers[:length])
        assert run(cut.ctypes.data, length, 1, 0, 0, None, None, None, None, None) == -2
    numbers = np.array(numbers)
    numbers[0] = 8 * len(numbers) - 8
    assert library._library().kernels_problem(numbers.ctypes.data, len(numbers)) == b"size"
    numbers[1] = 77
    assert library._library().kernels_problem(numbers.ctypes.data, len(numbers)) == b"kind"


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(AssertionError, match="hiden"):
        records.FeedForwardRecord(hiden=8)


def test_a_record_is_one_run_of_numbers() -> None:
    record = records.RanksRecord(group=5, adds_residual=True)
    assert record.numbers().tolist() == [ctypes.sizeof(record), 4, 5, 1]


def test_too_many_threads_are_rejected() -> None:
    with pytest.raises(ConfigError, match="engine.threads is 100000, which this machine does not start"):
        library.set_threads(100_000)


def test_threads_that_do_not_start_leave_the_existing_ones() -> None:
    """In a process of its own, whose address space has no room for another stack."""
    program = """
import resource
from inference.kernels import library
from inference.errors import ConfigError
library.set_threads(2)
import numpy as np
x = np.ones((3, 16), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), -1))
try:
    library.set_threads(900)
except ConfigError as error:
    print(error)
print(library.rms_norm(x, x[0], 0.0).sum())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "engine.threads is 900" in done.stdout and "48.0" in done.stdout

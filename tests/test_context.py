"""The context refuses a device that is not there before MindSpore is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inference import context as context_module
from inference.config import load_config
from inference.context import available_memory, build_context, check_device
from inference.errors import ConfigError, DeviceError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_mindspore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where MindSpore would be imported."""

    def refuse() -> float:
        raise AssertionError("MindSpore is imported")

    monkeypatch.setattr(context_module, "import_mindspore", refuse)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory in place of /dev."""

    def moved(path: str) -> Path:
        return tmp_path if path == "/dev" else Path(path)

    monkeypatch.setattr(context_module, "Path", moved)
    return tmp_path


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"device_target": "Ascend"}, "Ascend device 0 is not there, this machine has no Ascend device"),
        ({"device_target": "Ascend", "device_id": 5}, "Ascend device 5 is not there"),
        ({"device_target": "GPU"}, "no GPU backend"),
        ({"device_target": "CPU", "device_id": 3}, "there is no CPU device 3"),
        ({"device_id": 3}, "there is no CPU device 3"),
    ],
)
def test_a_missing_device(no_mindspore: None, devices: Path, section: dict, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        build_context({"context": section})
    assert caught.value.exit_code == 2 and caught.value.hint
    assert "\n" not in str(caught.value)


def test_an_available_ascend_device(devices: Path) -> None:
    for name in ("davinci0", "davinci3", "davinci10", "davinci_manager"):
        (devices / name).touch()
    for number in (0, 3, 10):
        check_device(load_config({"context": {"device_target": "Ascend", "device_id": number}}))
    with pytest.raises(DeviceError, match=r"this machine has devices \[0, 3, 10\]"):
        check_device(load_config({"context": {"device_target": "Ascend", "device_id": 1}}))


def test_the_error_names_the_requesting_file(no_mindspore: None, devices: Path, tmp_path: Path) -> None:
    path = tmp_path / "predict.yaml"
    path.write_text("seed: 1\ncontext:\n  device_target: Ascend\n", encoding="utf-8")
    with pytest.raises(DeviceError, match=r"predict\.yaml:3"):
        build_context(load_config(path))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"context": {"device_tarjet": "CPU"}}, "did you mean 'device_target'"),
        ({"contxt": {"mode": 0}}, "did you mean 'context'"),
        ({"context": {"mode": "fast"}}, "mode"),
        ({"context": {"device_target": "TPU"}}, "device_target"),
        ({"use_parallel": True, "parallel_config": {"model_parallel": 2}}, "needs 2 processes, 1 was started"),
    ],
)
def test_invalid_sections(no_mindspore: None, sections: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_context(sections)
    with pytest.raises(ConfigError, match=message):
        build_context(**sections)


def test_rejecting_a_device_does_not_import_mindspore() -> None:
    program = """
import sys
from inference import InferenceError, build_context
try:
    build_context({'context': {'device_target': 'CPU', 'device_id': 1}})
except InferenceError as error:
    assert 'mindspore' not in sys.modules
    sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize("spelling", [{"context": {"mode": 0}, "parallel": {}, "parallel_config": {}}, {}, None])
def test_the_call_from_mindformers_guide(spelling: dict | None) -> None:
    import mindspore

    context = build_context(spelling)
    assert (context.device_target, context.device_id, context.mode) == ("CPU", 0, 0)
    assert context.import_seconds >= 0
    assert mindspore.get_context("mode") == mindspore.GRAPH_MODE
    assert mindspore.get_context("device_target") == "CPU"


def test_available_memory_is_a_number_of_bytes() -> None:
    assert 2**20 < available_memory() < 2**50


GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path):
    """A machine with 8 GiB available, and control groups as they are given."""

    def make(membership: str, groups: dict[str, tuple[str, int, str]]) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 8388608 kB\n")
        (tmp_path / "proc/self/cgroup").write_text(membership)
        for path, (limit, used, stat) in groups.items():
            place = tmp_path / "sys/fs/cgroup" / path
            place.mkdir(parents=True, exist_ok=True)
            names = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes")
                if path.startswith("memory")
                else (
                    "memory.max",
                    "memory.current",
                )
            )
            for name, text in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
                (place / name).write_text(f"{text}\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("membership", "groups", "left"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/\n", {"": (f"{4 * GIB}", GIB, "anon 5\ninactive_file 100")}, 3 * GIB + 100),
        ("0::/\n", {"": ("max", GIB, "anon 5")}, 8 * GIB),
        ("0::/\n", {"": (f"{64 * GIB}", GIB, "anon 5")}, 8 * GIB),
        ("0::/a/b\n", {"a/b": ("max", 5, ""), "a": (f"{2 * GIB}", GIB, "")}, GIB),
        ("0::/a/b\n", {"a/b": (f"{GIB}", 5, ""), "a": (f"{2 * GIB}", 5, "")}, GIB - 5),
        ("0::/of/the/host\n", {"": (f"{GIB}", 24, "")}, GIB - 24),
        ("0::/\n", {"": (f"{GIB}", 2 * GIB, "")}, 0),
        (
            "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n",
            {"memory/docker/1": (f"{3 * GIB}", GIB, "cache 9\ntotal_inactive_file 7")},
            2 * GIB + 7,
        ),
        ("4:memory:/docker/1\n", {"memory": (f"{3 * GIB}", GIB, "cache 9")}, 2 * GIB),
        ("4:memory:/\n", {"memory": ("9223372036854771712", GIB, "cache 9")}, 8 * GIB),
        ("4:cpu:/\n", {"memory": (f"{GIB}", 0, "")}, 8 * GIB),
    ],
)
def test_memory_within_control_groups(machine, membership: str, groups: dict, left: int) -> None:
    """Version 2 and version 1, in a container or not; the tightest group counts."""
    assert available_memory(machine(membership, groups)) == left


def test_memory_without_control_groups(machine) -> None:
    root = machine("", {})
    (root / "proc/self/cgroup").unlink()
    assert available_memory(root) == 8 * GIB

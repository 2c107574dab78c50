"""The execution context: device, graph or eager mode, threads. The only module that sets them.

Rejects a missing device before MindSpore is imported.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from inference.config import InferenceConfig, load_config
from inference.errors import DeviceError
from inference.parallel.topology import check_topology, is_scheduler, is_worker

# Variable in which msrun passes a rank's local number on its machine.
LOCAL_RANK = "DEVICE_ID"
# Device files that the Ascend driver creates, one per device.
ASCEND_DEVICES = "davinci[0-9]*"
# Config keys about ranks from the last call of `build_context`.
_told: dict[str, Any] = {}
_PROTOBUF = "google.protobuf"
_PROTOBUF_VARIABLE = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"


@dataclass(frozen=True)
class Context:
    """The device and settings that the process runs with.

    Args:
        import_seconds: how long `import mindspore` took; 0 if it was already imported.
    """

    device_target: str
    device_id: int
    mode: int
    import_seconds: float = 0.0


def check_device(config: InferenceConfig) -> None:
    """Checks that the device exists, without importing MindSpore.

    Raises:
        DeviceError: this machine has no such device.
    """
    target, number = config.context.device_target, device_number(config)
    where = config.origin("context.device_target")
    if target == "GPU":
        raise DeviceError(f"{where}: MindSpore 2.9 has no GPU backend", "give --device_target CPU or Ascend")
    if target == "CPU" and number != 0:
        raise DeviceError(
            f"{config.origin('context.device_id')}: there is no CPU device {number}", "a machine's CPU is device 0"
        )
    if target == "Ascend":
        found = sorted(int(path.name.removeprefix("davinci")) for path in Path("/dev").glob(ASCEND_DEVICES))
        if number not in found:
            there = f"devices {found}" if found else "no Ascend device"
            raise DeviceError(
                f"{where}: Ascend device {number} is not there, this machine has {there}", "give --device_target CPU"
            )


def build_context(config: InferenceConfig | Mapping[str, Any] | None = None, **sections: Any) -> Context:
    """Sets up MindSpore for this process. In the scheduler process that msrun starts so that ranks can find one
    another, runs the scheduler here and exits when the ranks end (`SystemExit`).

    Args:
        config: a config, or a mapping with MindFormers' sections `context`, `parallel`, `parallel_config`.
        sections: the same sections as keyword arguments.

    Raises:
        ConfigError: a key is unknown, or a value is invalid.
        DeviceError: the device does not exist.
    """
    if not isinstance(config, InferenceConfig):
        config = load_config({**(config or {}), **sections})
    if is_scheduler():
        from inference.parallel.msrun_scheduler import main as schedule

        schedule()
        raise SystemExit(0)
    check_device(config)
    check_topology(config)
    _told.clear()
    if config.use_parallel:
        parallel = config.parallel_config.model_dump(exclude_unset=True)
        _told.update({"use_parallel": True}, **{f"parallel_config.{key}": value for key, value in parallel.items()})
    seconds = import_mindspore()
    import mindspore

    settings = config.context
    mindspore.set_context(mode=settings.mode, max_call_depth=settings.max_call_depth)
    _set_device(settings.device_target, device_number(config))
    if settings.device_target != "CPU":
        _set_ascend(config)
    if settings.save_graphs:
        path = settings.save_graphs_path or str(Path(config.output_dir) / "graphs")
        mindspore.set_context(save_graphs=settings.save_graphs, save_graphs_path=path)
    return Context(settings.device_target, device_number(config), settings.mode, seconds)


def _set_device(target: str, number: int) -> None:
    """Selects the device. It cannot be changed once in use, for example after `mindspore.communication.init`.

    Raises:
        DeviceError: this process already uses another device.
    """
    import mindspore

    try:
        mindspore.set_device(target, number)
    except RuntimeError as error:
        used = mindspore.get_context("device_target"), mindspore.get_context("device_id")
        # MindSpore counts the ranks on a CPU as devices.
        if used[0] != target or (target != "CPU" and used[1] != number):
            raise DeviceError(f"this process uses {used[0]} {used[1]} already, not {target} {number}") from error


def ranks_told() -> Mapping[str, Any]:
    """Returns the config keys in the last call of `build_context` that make this process one of several ranks."""
    return _told


def device_number(config: InferenceConfig) -> int:
    """Returns the device number of this process; each rank on a machine has its own device."""
    given = config.context.device_id
    if not (config.use_parallel and is_worker()) or config.context.device_target == "CPU":
        return given
    return int(os.environ.get(LOCAL_RANK, given))


def import_mindspore() -> float:
    """Imports MindSpore with its warnings off; returns how many seconds that took."""
    # Its warnings (an old Ascend driver, a slow file system) are for developers; 3 shows errors only.
    os.environ.setdefault("GLOG_v", "3")
    started = time.perf_counter()
    with _own_protobuf():
        import mindspore  # noqa: F401
    return time.perf_counter() - started


@contextmanager
def _own_protobuf() -> Iterator[None]:
    """Gives modules imported in this block their own copy of google.protobuf, in the pure Python implementation.

    MindSpore's code was generated by a version of protoc that protobuf's C library rejects. If Beam or TensorFlow was
    imported first, that library is already loaded, and importing MindSpore would abort the process.
    """
    if "mindspore" in sys.modules or _PROTOBUF not in sys.modules:
        yield
        return
    others = _taken_away(_PROTOBUF)
    chosen = os.environ.get(_PROTOBUF_VARIABLE)
    os.environ[_PROTOBUF_VARIABLE] = "python"
    try:
        yield
    finally:
        _taken_away(_PROTOBUF)
        sys.modules.update(others)
        sys.modules["google"].protobuf = others[_PROTOBUF]  # type: ignore[attr-defined]
        del os.environ[_PROTOBUF_VARIABLE]
        if chosen is not None:
            os.environ[_PROTOBUF_VARIABLE] = chosen


def _taken_away(package: str) -> dict[str, ModuleType]:
    """Removes a package and its submodules from `sys.modules`; returns them."""
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}


def _set_ascend(config: InferenceConfig) -> None:
    import mindspore

    settings = config.context
    given = {
        "max_device_memory": settings.max_device_memory,
        "ascend_config": settings.ascend_config,
        "deterministic": settings.deterministic,
    }
    mindspore.set_context(**{key: value for key, value in given.items() if value is not None})


def available_memory(root: Path = Path("/")) -> int:
    """Returns the memory that this process can still allocate, in bytes: MemAvailable, capped by its control groups.

    Args:
        root: directory that contains /proc and /sys.
    """
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return max(0, min([int(line.split()[1]) * 1024, *_left_in_groups(root)]))
    raise DeviceError("/proc/meminfo does not say how much memory is available")


# For versions 2 and 1 of Linux control groups: mount point, limit file, usage file, and the statistic for file cache
# that counts as usage but that the kernel can reclaim.
_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yields the bytes that remain in each control group of this process, such as a container's."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number != "0" and "memory" not in controllers.split(","):
            continue
        mount, limit, used, cache = _GROUPS[number != "0"]
        # In a container, the path may be the host's while the mounted group is the container's own.
        parts = Path(path).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield from _left(root.joinpath(mount, *parts[:depth]), limit, used, cache)


def _left(group: Path, limit: str, used: str, cache: str) -> Iterator[int]:
    try:
        most, taken = (group / limit).read_text().strip(), int((group / used).read_text())
        stat = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE))
    except (OSError, ValueError):
        return
    if most != "max":
        yield int(most) - taken + int(stat.get(cache, 0))

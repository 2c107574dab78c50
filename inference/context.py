"""The execution context: device, graph or eager mode, threads. The only module that touches them.

A device that is not there is refused before MindSpore is imported.
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

# msrun's number of a rank among those on its machine.
LOCAL_RANK = "DEVICE_ID"
# Each Ascend device that the driver knows has a file of this name.
ASCEND_DEVICES = "davinci[0-9]*"
# What `build_context` was last told about ranks, as keys of the config.
_told: dict[str, Any] = {}
_PROTOBUF = "google.protobuf"
_PROTOBUF_VARIABLE = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"


@dataclass(frozen=True)
class Context:
    """What the process runs on.

    Args:
        import_seconds: how long `import mindspore` took; 0 where it was imported before.
    """

    device_target: str
    device_id: int
    mode: int
    import_seconds: float = 0.0


def check_device(config: InferenceConfig) -> None:
    """Refuses a device that is not there, without importing MindSpore.

    Raises:
        DeviceError: no such device on this machine.
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
    """Sets MindSpore up for this process. One that msrun started beside the ranks, so that they find one another, does
    that here, and ends with them (`SystemExit`).

    Args:
        config: a config, or a mapping with MindFormers' sections `context`, `parallel`, `parallel_config`.
        sections: the same sections by name.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
        DeviceError: the device is not there.
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
    """Chooses the device. One that is in use already, as after `mindspore.communication.init`, cannot be changed.

    Raises:
        DeviceError: another one is in use.
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
    """Keys of the config with which `build_context` was told that this process is one of several ranks."""
    return _told


def device_number(config: InferenceConfig) -> int:
    """The device of this process: of the ranks on a machine with several, each has one of its own."""
    given = config.context.device_id
    if not (config.use_parallel and is_worker()) or config.context.device_target == "CPU":
        return given
    return int(os.environ.get(LOCAL_RANK, given))


def import_mindspore() -> float:
    """Imports MindSpore quietly; the seconds that it took."""
    # Its warnings (an old Ascend driver, a slow file system) are for its developers; 3 shows errors only.
    os.environ.setdefault("GLOG_v", "3")
    started = time.perf_counter()
    with _own_protobuf():
        import mindspore  # noqa: F401
    return time.perf_counter() - started


@contextmanager
def _own_protobuf() -> Iterator[None]:
    """Lets what is imported meanwhile have a google.protobuf of its own, in Python.

    MindSpore's generated code is of a protoc that protobuf's C library refuses, and that library is in use where Beam
    or TensorFlow were imported first: the import would end the process.
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
    """A package and its modules, out of the table of what is imported."""
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
    """Memory that this process can still take, bytes: what the kernel calls available, within its control groups.

    Args:
        root: where /proc and /sys are.
    """
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return max(0, min([int(line.split()[1]) * 1024, *_left_in_groups(root)]))
    raise DeviceError("/proc/meminfo does not say how much memory is available")


# Of version 2 and 1 of Linux' control groups: where they are, the files of limit and use, and what of the use is file
# cache that the kernel gives back.
_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group around this process, such as a container's, still lets it take."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number != "0" and "memory" not in controllers.split(","):
            continue
        mount, limit, used, cache = _GROUPS[number != "0"]
        # In a container the path may be the host's, and the group of the container is what is mounted.
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

"""Kernels: the operations of a decoder step, behind one interface.

`stock` builds them from MindSpore's own operators and runs on every device. It is the reference against which our own
CPU kernels, `native`, are tested. Both modules export the same names; `choose` picks one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from inference.errors import ConfigError
from inference.kernels.build import KernelBuildError, library_path

# Neighboring positions of a cache block map to the lanes of a register, which has at most sixteen.
LANES = 16
MAX_BLOCK_SIZE = 128


def choose(
    requested: str, *, device_target: str, mode: int, block_size: int, threads: int | None, say: Callable[[str], None]
) -> ModuleType:
    """Choose the module that provides the kernels.

    Args:
        requested: auto, native or stock.
        mode: 0 for graphs; custom operators run in graphs only.
        threads: thread count of the native kernels; None for all processors.
        say: receives build progress, and one line if `auto` falls back to stock operators.

    Raises:
        ConfigError: native kernels are requested but cannot run here.
        KernelBuildError: native kernels are requested but cannot be built.
    """
    if requested == "stock":
        return import_module("inference.kernels.stock")
    obstacle = _obstacle(device_target, mode, block_size)
    if obstacle and requested == "native":
        raise ConfigError(f"engine.kernels native cannot be used: {obstacle}", "give engine.kernels auto")
    if obstacle:
        if device_target == "CPU":
            say(f"native kernels cannot be used ({obstacle}): stock operators are, which are slower")
        return import_module("inference.kernels.stock")
    try:
        library_path(say=say)
    except KernelBuildError as error:
        if requested == "native":
            raise
        say(f"{error}: stock operators are used, which are slower")
        return import_module("inference.kernels.stock")
    from inference.kernels.library import set_threads

    set_threads(threads)
    native = import_module("inference.kernels.native")
    if native.turn_compile_cache_off():
        say("MindSpore's compile cache is not used: the native kernels' graph holds addresses of this process")
    return native


def _obstacle(device_target: str, mode: int, block_size: int) -> str | None:
    if device_target != "CPU":
        return f"they are for the CPU, the device is {device_target}"
    if mode != 0:
        return "context.mode is 1, they run in graphs"
    if block_size % LANES or block_size > MAX_BLOCK_SIZE:
        return f"engine.block_size is {block_size}, they take multiples of {LANES} up to {MAX_BLOCK_SIZE}"
    return None

"""Calls a network that is compiled once and for all.

MindSpore checks arguments and walks through all cells at every call of a network, about 0.35 ms for three operators. A
network whose inputs are declared with dynamic shapes (`set_inputs`) is compiled once, so after its first call its
graph can be run as it is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

# MindSpore compiles and runs one graph at a time: two threads with a model each end in "Nested execution", or take the
# process with them.
graph_turn = threading.RLock()


class CompiledNetwork:
    """`network(*tensors)`, without what MindSpore does again at every call.

    Args:
        network: a Cell with declared dynamic inputs; in PyNative mode it is called as it is.
    """

    def __init__(self, network: Any):
        self.network = network
        self._run: Callable[..., Any] | None = None

    def __call__(self, *tensors: Any) -> Any:
        if self._run is not None:
            return self._run(self.network, *tensors, phase=self.network.phase)
        result = self.network(*tensors)
        self._run = _graph_runner()
        return result


def _graph_runner() -> Callable[..., Any]:
    """Runs the compiled graph of a network; the network itself where that is not to be had."""
    import mindspore

    if mindspore.get_context("mode") == mindspore.GRAPH_MODE:
        try:
            from mindspore.nn.cell import _cell_graph_executor

            return _cell_graph_executor.run
        except (ImportError, AttributeError):
            print("this MindSpore has no graph runner that is known: each step takes a little longer", file=sys.stderr)
    return _call


def _call(network: Any, *tensors: Any, phase: str) -> Any:
    return network(*tensors)

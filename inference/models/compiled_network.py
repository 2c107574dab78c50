"""Calls a compiled network without MindSpore's overhead per call.

MindSpore checks arguments and walks through all cells at every call of a network, which takes about 0.35 ms for three
operators. A network whose inputs are declared with dynamic shapes (`set_inputs`) is compiled only once, so after the
first call its graph can be run directly.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

# MindSpore compiles and runs one graph at a time: two threads with a model each fail with "Nested execution" or crash
# the process.
graph_turn = threading.RLock()


class CompiledNetwork:
    """Calls `network(*tensors)` without the work that MindSpore repeats at every call.

    Args:
        network: a Cell with declared dynamic inputs; in PyNative mode it is called directly.
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
    """Returns a function that runs a network's compiled graph, or calls the network if the graph is not available."""
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

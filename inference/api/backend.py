"""Chooses whose networks run the model, this project's or MindFormers': `engine.backend`."""

from __future__ import annotations

from importlib.util import find_spec

from inference.config import InferenceConfig
from inference.config.run_modes import RUN_MODES
from inference.errors import ConfigError
from inference.generation.model import GenerativeModel
from inference.parallel.topology import check_topology
from inference.terminal.output import say


def check_backend(config: InferenceConfig) -> None:
    """Refuses a backend that cannot run.

    Raises:
        ConfigError: MindFormers is selected, but is not installed or does not support another setting.
    """
    if config.engine.backend == "mindformers" and (obstacle := _obstacle(config)):
        raise ConfigError(f"{config.origin('engine.backend')}: engine.backend mindformers: {obstacle}", "give native")


def choose_model_class(config: InferenceConfig) -> type[GenerativeModel]:
    """Returns the class of the model; `auto` uses MindFormers on Ascend if it is installed, and reports it on stderr.

    Raises:
        ConfigError: the backend cannot run.
    """
    check_backend(config)
    backend, target = config.engine.backend, config.context.device_target
    if backend == "auto" and target == "Ascend":
        obstacle = _obstacle(config)
        backend = "native" if obstacle else "mindformers"
        say(f"engine.backend is {backend}: {obstacle or 'MindFormers is installed'}")
    if backend != "mindformers":
        return GenerativeModel
    if target == "CPU":
        say("MindFormers' own networks do not run on a CPU: its generate loop runs this project's")
    from inference.mindformers_bridge.backend import MindFormersModel

    return MindFormersModel


def _obstacle(config: InferenceConfig) -> str | None:
    if find_spec("mindformers") is None:
        return "mindformers is not installed (pip install 'mindspore-inference[mindformers]')"
    if not RUN_MODES[config.run_mode].on_mindformers:
        return f"MindFormers does not do run_mode {config.run_mode}"
    if check_topology(config).world_size > 1:
        return "the ranks of a parallel run share this project's networks"
    if config.engine.random_weights:
        return "MindFormers does not do random weights"
    if config.adapters or (config.model.model_config.pet_config or {}).get("pet_type"):
        return "adapters are for this project's networks"
    return None

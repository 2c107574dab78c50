"""The bridge to MindFormers (extra `mindformers`), in both directions.

`register()` registers this project's networks with MindFormers, whose own code then drives them, also on a CPU:
AutoConfig and AutoModel, `generate`, `pipeline`, `Trainer(config).predict`. `backend` does the reverse: it runs
MindFormers' networks and generate loop behind this project's command line. Nothing outside this package imports
mindformers, and this file imports it only in `register`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from inference.errors import ConfigError
from inference.models.architecture.registry import ALIASES, ARCHITECTURES

# The value for run_mindformer.py's --register_path: the directory of `auto_register`.
REGISTER_PATH = Path(__file__).parent


def is_installed() -> bool:
    """Whether mindformers is installed."""
    return find_spec("mindformers") is not None


def register(replace: bool = False) -> None:
    """Register `InferenceModelConfig` and `InferenceForCausalLM` with MindFormers, for YAML files of both styles.

    Args:
        replace: also register them under the names of all supported families, such as LlamaConfig and Qwen3ForCausalLM,
            in place of MindFormers' own classes. An unmodified YAML of MindFormers then runs here.

    Raises:
        ConfigError: mindformers is not installed.
    """
    if not is_installed():
        raise ConfigError("mindformers is not installed", "pip install 'mindspore-inference[mindformers]'")
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    from inference.mindformers_bridge.network import InferenceForCausalLM, InferenceModelConfig, renamed

    def put(kind: str, own: type, name: str) -> None:
        # MindFormers has separate registries for its older and newer YAML styles.
        for legacy in (True, False):
            MindFormerRegister.register_cls(own, kind, alias=name, legacy=legacy)

    for kind, own in (
        (MindFormerModuleType.CONFIG, InferenceModelConfig),
        (MindFormerModuleType.MODELS, InferenceForCausalLM),
    ):
        put(kind, own, own.__name__)
        for name in (*ARCHITECTURES, *ALIASES) if replace else ():
            put(kind, renamed(own, name, ALIASES.get(name, name)), name)

"""A preset of every family builds with its sizes shrunk, and runs."""

from __future__ import annotations

import pytest

from inference import AutoConfig, AutoModel, load_config
from inference.config import parse_override
from inference.config.presets import Preset, find_preset, list_presets

# A quarter as many heads of keys and values as of queries, where the preset groups them.
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
HUGGING_FACE = {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8, "max_position_embeddings": 64}
MINDFORMERS = {"num_layers": 2, "num_heads": 4, "seq_length": 64}


T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}

# The smallest of each family, and those that differ from it in more than their sizes. Those of codellama, llama3_2 and
# yi are read and run as those of llama2 and llama3_1 are.
AS_OTHERS = {"demo", "codellama", "llama3_2", "yi", "t5", "flan_t5"}
PRESETS = list({p.family: p for p in reversed(list_presets()) if p.family not in AS_OTHERS}.values())
PRESETS += [p for p in list_presets() if p.name in ("mistral_7b_v0_3", "baichuan2_13b", "phi4_mini", "glm4_9b")]
# Layers of the two with a window.
WINDOWS = {"mistral_7b": (8, 8), "phi3_mini_4k": (8, 8), "gemma2_2b": (8, None), "gemma3_270m": (8, 8)}


def shrunk(config: AutoConfig) -> dict[str, object]:
    """Small sizes in the spelling that the preset has."""
    sizes = {**SIZES, **(MINDFORMERS if config.num_layers else HUGGING_FACE)}
    for heads, groups in (("num_attention_heads", "num_key_value_heads"), ("num_heads", "n_kv_heads")):
        if getattr(config, groups):
            sizes[groups] = max(1, 4 * getattr(config, groups) // getattr(config, heads))
    if config.head_dim:
        sizes["head_dim"] = 8
    return {**sizes, "sliding_window": 8} if config.sliding_window else sizes


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_preset_runs_with_its_sizes_shrunk(preset: Preset, workplace, graph_mode):
    config = load_config(preset.path, overrides=[parse_override("pretrained_model_dir=null")])
    sizes = shrunk(AutoConfig(config))
    model = AutoModel.from_config(config, random_weights=True, **sizes)
    assert model.config.num_layers == 2
    assert model.config.windows == WINDOWS.get(preset.name, (None, None))
    groups = 2 if preset.name in ("glm3_6b", "glm4_9b", "glm4_9b_chat") else 4
    assert model.config.num_kv_heads == sizes.get("num_key_value_heads", sizes.get("n_kv_heads", groups))
    (row,) = model.generate([1, 2, 3] * 4, max_new_tokens=4, ignore_eos=True)
    assert len(row) == 16
    assert all(0 <= token < 64 for token in row)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5_small", "flan_t5_small"])
def test_t5_preset_runs_with_its_sizes_shrunk(name: str, workplace, graph_mode):
    config = load_config(find_preset(name), overrides=[parse_override("pretrained_model_dir=null")])
    model = AutoModel.from_config(AutoConfig(config), random_weights=True, **T5)
    assert (model.config.num_encoder_layers, model.config.num_layers, model.config.hidden_size) == (2, 2, 32)
    assert model.config.gated == (name == "flan_t5_small")
    (row,) = model.generate([1, 2, 3] * 4, max_new_tokens=4, ignore_eos=True)
    assert len(row) == 5 and row[0] == 0
    assert all(0 <= token < 64 for token in row)

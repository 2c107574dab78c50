"""The presets that ship: each loads, says where its weights are, and has the sizes of its model."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from inference.config import load_config, parse_override
from inference.config import presets as module
from inference.config.presets import Preset, find_preset, is_preset, list_presets, presets_directory
from inference.errors import ModelNotFoundError
from inference.models.architecture.registry import model_config_from
from inference.models.architecture.t5_config import T5Config
from inference.models.weights.parameters import tensor_places

PRESETS = list_presets()
# Comes from the model's config.json: too long for a preset.
LONG_FACTORS = {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}}
# The sizes that the models' authors publish, in weights.
PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "baichuan2_7b": 7_505_973_248,
    "baichuan2_13b": 13_896_668_160,
    "codellama_7b": 6_738_546_688,
    "codellama_13b": 13_016_028_160,
    "codellama_34b": 33_743_970_304,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "glm3_6b": 6_243_584_000,
    "glm4_9b_chat": 9_399_951_360,
    "glm4_9b": 9_400_279_040,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "internlm2_1_8b": 1_889_110_016,
    "internlm2_7b": 7_737_708_544,
    "internlm2_20b": 19_861_149_696,
    "phi3_mini_4k": 3_821_079_552,
    "phi3_medium_4k": 13_960_238_080,
    "phi4_mini": 3_836_021_760,
    "phi4": 14_659_507_200,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "t5_v1_1_xl": 2_849_757_184,
    "t5_v1_1_xxl": 11_135_332_352,
    "flan_t5_small": 76_961_152,
    "flan_t5_base": 247_577_856,
    "flan_t5_large": 783_150_080,
    "flan_t5_xl": 2_849_757_184,
    "flan_t5_xxl": 11_135_332_352,
    # Not published: counted from the sizes of the paper (arXiv:2401.03804) and MindFormers' YAML.
    "telechat2_7b": 7_617_351_680,
    "telechat2_35b": 35_435_059_200,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_620_634_112,
    "qwen1_5_moe_a2_7b": 14_315_784_192,
    "qwen2_57b_a14b": 57_408_658_944,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "glm4_5_air_106b": 106_852_251_264,
    "glm4_5_355b": 352_797_829_024,
    "deepseek2_lite": 15_706_484_224,
    "deepseek2_236b": 235_741_434_880,
    "deepseek3_671b": 671_026_419_200,
    "deepseek_r1_671b": 671_026_419_200,
    "yi_6b": 6_061_035_520,
    "yi_9b": 8_829_407_232,
    "yi_34b": 34_388_917_248,
}
# Families that are Llama's decoder, whose weights are counted here by hand; those of the others by their tensors.
LLAMA_LIKE = ("llama2", "llama3_1", "llama3_2", "mistral", "qwen2_5", "qwen3", "codellama")
WITHOUT_SIZES = {"phi4_mini": LONG_FACTORS}
DEMOS = {"demo", "demo_t5"}
DECODERS = [p for p in PRESETS if "t5" not in p.name and p.name not in DEMOS]


def by_name(preset: Preset) -> str:
    return preset.name


def weights(sizes: dict, family: str) -> int:
    """Counts a model's weights from its sizes, in either spelling."""
    if "d_model" in sizes:
        return t5_weights(sizes)

    def size(*names: str) -> int:
        return next(sizes[name] for name in names if name in sizes)

    hidden, heads = sizes["hidden_size"], size("num_heads", "num_attention_heads")
    head = sizes.get("head_dim", hidden // heads)
    query = heads * head
    key = (size("n_kv_heads", "num_key_value_heads") if "n_kv_heads" in sizes or "head_dim" in sizes else heads) * head
    layer = 2 * hidden * (query + key) + 3 * hidden * sizes["intermediate_size"] + 2 * hidden
    layer += query + 2 * key if family == "qwen2_5" else 2 * head if family == "qwen3" else 0
    embeddings = sizes["vocab_size"] * hidden * (1 if sizes["tie_word_embeddings"] else 2)
    return size("num_layers", "num_hidden_layers") * layer + embeddings + hidden


def t5_weights(sizes: dict) -> int:
    """An encoder, and a decoder that attends to it too; a norm before each part, a table of distances in each stack."""
    hidden, heads, layers = sizes["d_model"], sizes["num_heads"], sizes["num_layers"]
    attention = 4 * hidden * heads * sizes["d_kv"] + hidden
    matrices = 3 if sizes["feed_forward_proj"] == "gated-gelu" else 2
    feed_forward = matrices * hidden * sizes["d_ff"] + hidden
    embeddings = sizes["vocab_size"] * hidden * (1 if sizes["tie_word_embeddings"] else 2)
    stacks = 2 * (hidden + sizes["relative_attention_num_buckets"] * heads)
    return layers * (3 * attention + 2 * feed_forward) + embeddings + stacks


def test_the_list() -> None:
    assert {preset.name for preset in PRESETS} == {*PUBLISHED, *DEMOS}
    assert [preset.family for preset in PRESETS] == sorted(preset.family for preset in PRESETS)
    qwen = [preset.name for preset in PRESETS if preset.family == "qwen3"]
    assert qwen == [f"qwen3_{size}" for size in ("0_6b", "1_7b", "4b", "8b", "14b", "32b")]


@pytest.mark.parametrize("preset", PRESETS, ids=by_name)
def test_preset_loads_and_has_no_key_without_effect(preset: Preset) -> None:
    config = load_config(preset.path)
    assert config.unused_keys == []
    assert config.run_mode == "predict"
    assert config.context.device_target == "CPU"
    assert config.trainer.model_name == preset.name
    assert preset.path.parent.name == preset.family
    assert config.generation().greedy
    config.check_supported()


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.name not in DEMOS], ids=by_name)
def test_preset_has_the_sizes_of_its_model(preset: Preset) -> None:
    config = load_config(preset.path)
    sizes = config.model.model_config.given_architecture()
    assert preset.parameters == config.model.parameters == PUBLISHED[preset.name]
    if preset.family in LLAMA_LIKE:
        assert weights(sizes, preset.family) == PUBLISHED[preset.name]
    model = model_config_from(sizes | WITHOUT_SIZES.get(preset.name, {}), preset.name, config.model.arch.type)
    assert sum(math.prod(place.shape) for place in tensor_places(model)) == PUBLISHED[preset.name]
    assert config.model.hub_id is not None
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", config.model.hub_id)
    named = config.pretrained_model_dir or config.model.model_config.checkpoint_name_or_path
    assert named == preset.name


@pytest.mark.parametrize("preset", [p for p in PRESETS if "t5" in p.name and p.name not in DEMOS], ids=by_name)
def test_preset_builds_an_encoder_and_a_decoder(preset: Preset) -> None:
    config = load_config(preset.path)
    sizes = config.model.model_config.given_architecture()
    model = model_config_from(sizes, preset.name, config.model.arch.type)
    assert isinstance(model, T5Config)
    assert model.num_parameters == PUBLISHED[preset.name]
    assert model.gated == (not model.tie_embeddings) == (preset.family == "flan_t5" or "v1_1" in preset.name)


@pytest.mark.parametrize("preset", DECODERS, ids=by_name)
def test_preset_builds_an_architecture(preset: Preset) -> None:
    config = load_config(preset.path)
    sizes = config.model.model_config.given_architecture()
    model = model_config_from(sizes | WITHOUT_SIZES.get(preset.name, {}), preset.name, config.model.arch.type)
    assert model.num_layers * model.hidden_size > 0
    windows = {"mistral_7b": 4096, "phi3_mini_4k": 2047, "phi3_medium_4k": 2047, "gemma2": 4096, "gemma3": 512}
    assert model.windows[0] == windows.get(preset.name, windows.get(preset.family))
    assert (model.rope.kind == "llama3") == preset.family.startswith("llama3")
    assert model.qkv_bias == (preset.family in ("qwen2_5", "glm3", "glm4", "gpt2", "qwen2_moe", "glm4_moe"))
    assert model.qk_norm == (preset.family in ("qwen3", "gemma3", "qwen3_moe") or preset.name == "glm4_5_355b")
    assert (model.experts is not None) == (preset.family.endswith("_moe") or preset.family[:6] in ("mixtra", "deepse"))
    assert (model.latent is not None) == preset.family.startswith("deepseek")
    assert (model.alibi_slopes is not None) == (preset.name == "baichuan2_13b")


@pytest.mark.parametrize("preset", PRESETS, ids=by_name)
def test_preset_states_what_to_edit_and_the_source_of_its_figures(preset: Preset) -> None:
    text = preset.path.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Edit" in comment
    assert preset.hub_id is None or f"huggingface.co/{preset.hub_id}" in comment
    assert all(len(line) <= 120 for line in text.splitlines())


def test_sizes_can_be_overridden_in_the_other_spelling() -> None:
    override = parse_override("model.model_config.num_hidden_layers=2")
    config = load_config(find_preset("llama2_7b"), overrides=[override])
    sizes = config.model.model_config.given_architecture()
    assert sizes["num_hidden_layers"] == 2
    assert "num_layers" not in sizes


def test_lengths_of_a_preset() -> None:
    assert load_config(find_preset("llama2_7b")).generation().max_length == 512
    assert load_config(find_preset("qwen3_8b")).generation().max_new_tokens == 512


@pytest.mark.parametrize("name", ["qwen2_5_7b", "Qwen2.5-7B", "qwen2.5 7b"])
def test_find_preset(name: str) -> None:
    assert is_preset(name)
    assert find_preset(name).name == "predict_qwen2_5_7b.yaml"


def test_unknown_preset() -> None:
    assert not is_preset("llama2_8b")
    with pytest.raises(ModelNotFoundError, match="there is no preset 'llama2_8b'; did you mean 'llama"):
        find_preset("llama2_8b")
    with pytest.raises(ModelNotFoundError, match="there is no preset 'zzz'; known: .*demo, .*qwen3_8b"):
        find_preset("zzz")


def test_an_unrelated_configs_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MindFormers installs a folder `configs` into site-packages, beside where our package may be."""
    package = tmp_path / "inference"
    for path in (tmp_path / "configs", package / "configs"):
        path.mkdir(parents=True)
    monkeypatch.setattr(module, "_PACKAGE", package)
    assert presets_directory() == package / "configs"
    (tmp_path / "run_inference.py").touch()
    assert presets_directory() == tmp_path / "configs"

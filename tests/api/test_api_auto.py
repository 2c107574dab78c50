"""AutoConfig, AutoTokenizer and AutoModel: what they take, what they refuse, where they look."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import inference
from inference import AutoConfig, AutoModel, AutoTokenizer, GenerationConfig, InferenceError, context, load_config
from inference.api import auto
from inference.config import InferenceConfig
from inference.config.presets import find_preset, list_presets
from inference.errors import ConfigError, ModelNotFoundError
from inference.generation.model import GenerativeModel
from inference.generation.ranks import load

QUESTION = "12 + 7 ="
SHRUNK = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64}


def answer(model: GenerativeModel, **settings: object) -> str:
    """What a model says to a sum."""
    pipe = inference.pipeline(model=model)
    ((text,),) = [output["text_generation_text"] for output in pipe(QUESTION, **settings)]
    return text


def test_everything_is_importable_from_the_package():
    for name in inference.__all__:
        assert getattr(inference, name) is not None
    with pytest.raises(AttributeError, match="module 'inference' has no attribute 'AutoProcesor'"):
        inference.AutoProcesor  # noqa: B018


@pytest.mark.parametrize("source", ["yaml", "directory", "name"])
def test_config_of_every_kind_of_source(source, demo):
    config = AutoConfig.from_pretrained({"yaml": find_preset("demo"), "directory": demo, "name": "demo"}[source])
    assert config.inference_config.run_mode == "predict"
    assert config.do_sample is False


def test_config_can_be_read_and_changed_key_by_key():
    config = AutoConfig.from_pretrained("llama2_7b", seq_length=1024)
    assert (config.num_layers, config.hidden_size, config.seq_length, config.top_k) == (32, 4096, 1024, 3)
    config.num_layers, config.use_past, config.top_p = 2, False, 0.5
    assert (config.num_layers, config.use_past, config.top_p, config.hidden_size) == (2, False, 0.5, 4096)
    assert config.inference_config.generation().top_p == 0.5
    # The preset itself is as it was.
    assert AutoConfig.from_pretrained("llama2_7b").num_layers == 32


def test_config_rejects_unknown_keys_and_values():
    config = AutoConfig.from_pretrained("demo")
    with pytest.raises(ConfigError, match="a model's config has no 'num_layrs'; did you mean 'num_layers'?"):
        config.num_layrs = 3
    with pytest.raises(ConfigError, match="num_layers: model.model_config.num_layers must be at least 1, got 0"):
        config.num_layers = 0
    with pytest.raises(ConfigError, match="no 'use_pasts'; did you mean 'use_past'?"):
        AutoConfig.from_pretrained("demo", use_pasts=True)
    with pytest.raises(AttributeError, match="a model's config has no 'num_layrs'"):
        config.num_layrs  # noqa: B018
    assert not hasattr(config, "num_layrs")


def test_support_list():
    assert AutoConfig.show_support_list() == [preset.name for preset in list_presets()]


def test_generation_config():
    config = GenerationConfig(max_new_tokens=3, top_k=0)
    assert (config.max_new_tokens, config.top_k, config.greedy) == (3, 0, True)
    with pytest.raises(ConfigError, match="unknown generation setting 'max_lenght'; did you mean 'max_length'?"):
        GenerationConfig(max_lenght=3)


def test_tokenizer_of_every_kind_of_source(demo, workplace):
    ids = AutoTokenizer.from_pretrained("demo").encode(QUESTION)
    assert AutoTokenizer.from_pretrained(demo).encode(QUESTION) == ids
    assert AutoTokenizer.from_pretrained(find_preset("demo")).encode(QUESTION) == ids
    yaml = workplace / "named.yaml"
    yaml.write_text(f"processor:\n  tokenizer:\n    vocab_file: {demo / 'tokenizer.model'}\n")
    assert AutoTokenizer.from_pretrained(str(yaml)).encode(QUESTION, add_special_tokens=False) == ids[1:]
    plain = AutoTokenizer.from_pretrained("demo", add_bos_token=False)
    assert plain.encode(QUESTION) == ids[1:]


def test_names_are_searched_in_the_working_directory_and_the_home(demo, workplace, monkeypatch):
    ids = AutoTokenizer.from_pretrained("demo").encode(QUESTION)
    shutil.copytree(demo, workplace / "checkpoint_download" / "llama2_7b")
    assert AutoTokenizer.from_pretrained("llama2_7b").encode(QUESTION) == ids
    shutil.move(workplace / "checkpoint_download", workplace / "home")
    with pytest.raises(ModelNotFoundError):
        AutoTokenizer.from_pretrained("llama2_7b")
    monkeypatch.setenv("INFERENCE_MODEL_HOME", str(workplace / "home"))
    assert AutoTokenizer.from_pretrained("llama2_7b").encode(QUESTION) == ids
    assert AutoTokenizer.from_pretrained("Llama2-7B").encode(QUESTION) == ids


@pytest.mark.parametrize("factory", [AutoTokenizer.from_pretrained, AutoModel.from_pretrained])
def test_errors_for_missing_names_list_the_searched_places(factory, workplace):
    with pytest.raises(ModelNotFoundError) as caught:
        factory("llama2_7b")
    message = str(caught.value)
    assert "the model 'llama2_7b' was not found in checkpoint_download/llama2_7b ($INFERENCE_MODEL_HOME is" in message
    assert "meta-llama/Llama-2-7b-hf: not in its cache, and HF_HUB_OFFLINE is set" in message
    assert "put its files into checkpoint_download/llama2_7b, or set pretrained_model_dir" in message


def test_a_misspelt_name_or_setting_names_the_nearest(workplace):
    (workplace / "qwen-q4.gguf").touch()
    for name, close in (("dmeo", "demo"), ("qwen3-0.6", "qwen3_0_6b"), ("qwen-q4.guf", "qwen-q4.gguf")):
        with pytest.raises(ModelNotFoundError, match=f"; did you mean '{close}'?"):
            AutoConfig.from_pretrained(name)
    for setting, close in (
        ("weigth_dtype", "weight_dtype"),
        ("tensor_parallel_size", "model_parallel"),
        ("device", "device_target"),
        ("load_in_8bit", "weight_dtype"),
    ):
        with pytest.raises(ConfigError, match=f"a model's config has no '{setting}'; did you mean '{close}'?"):
            AutoConfig.from_pretrained("demo", **{setting: 1})


@pytest.mark.parametrize("name", ["weight_dtype", "dtype", "torch_dtype"])
def test_the_type_of_the_weights_under_other_libraries_names(name):
    for value, dtype in (("int8", "int8"), ("bf16", "bfloat16"), ("auto", "auto")):
        config = AutoConfig.from_pretrained("demo", **{name: value}).inference_config
        assert config.engine.weight_dtype == dtype


def test_model_of_a_directory_and_a_ckpt_with_the_names_of_mindformers(model, demo, ckpt):
    expected = answer(model)
    assert expected == f"{QUESTION} 19"
    assert answer(AutoModel.from_pretrained(demo, checkpoint_name_or_path=str(ckpt))) == expected


def test_model_of_a_preset_in_the_working_directory(demo, ckpt, workplace):
    """`llama2_7b` with the demo's sizes: config and tokenizer from the preset, weights from a .ckpt beside them."""
    place = workplace / "checkpoint_download" / "llama2_7b"
    place.mkdir(parents=True)
    shutil.copy(ckpt, place)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo / name, place)
    sizes = json.loads((demo / "config.json").read_text())
    model = AutoModel.from_pretrained(
        "llama2_7b",
        num_layers=sizes["num_hidden_layers"],
        num_heads=sizes["num_attention_heads"],
        n_kv_heads=sizes["num_key_value_heads"],
        seq_length=sizes["max_position_embeddings"],
        tie_word_embeddings=True,
        **{key: sizes[key] for key in ("hidden_size", "intermediate_size", "vocab_size")},
        use_past=True,
    )
    assert model.config.context_length == 512
    assert answer(model, eos_token_id=[2, 7]) == f"{QUESTION} 19"


def test_model_of_a_yaml_and_of_a_config(model, workplace):
    yaml = workplace / "mine.yaml"
    yaml.write_text(f"base_config: {find_preset('demo')}\ngeneration_config:\n  max_new_tokens: 2\n")
    assert answer(AutoModel.from_pretrained(yaml)) == f"{QUESTION} 1"
    config = AutoConfig.from_pretrained("demo")
    config.use_past = False
    slow = AutoModel.from_config(config)
    assert slow.generation_config.use_past is False
    assert answer(slow) == answer(model)
    assert answer(AutoModel.from_config(load_config(yaml))) == f"{QUESTION} 1"


def test_weights_are_random_only_on_request(workplace, graph_mode):
    config = AutoConfig.from_pretrained("llama2_7b", **SHRUNK)
    with pytest.raises(ModelNotFoundError, match="the model 'llama2_7b' was not found"):
        AutoModel.from_config(config)
    model = AutoModel.from_config(config, random_weights=True)
    (row,) = model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
    assert len(row) == 7
    with pytest.raises(InferenceError, match="a model's config has no 'random_weight'"):
        AutoModel.from_config(config, random_weight=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[bool, int]]:
    """What a model is loaded with, by a rank of two that msrun started: use_parallel and model_parallel."""
    found: list[InferenceConfig] = []
    monkeypatch.setattr(auto, "load", lambda model_class, config, say: found.append(config))
    monkeypatch.setattr(context, "import_mindspore", lambda: 0.0)
    monkeypatch.setattr(context, "_told", {})
    for name, value in {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "RANK_ID": "1"}.items():
        monkeypatch.setenv(name, value)

    def ask(told: dict[str, Any] | None, **settings: Any) -> tuple[bool, int]:
        if told is not None:
            context.build_context(told)
        AutoModel.from_pretrained("demo", **settings)
        return found[-1].use_parallel, found[-1].parallel_config.model_parallel

    return ask


def test_a_program_asks_for_ranks(asked: Callable[..., tuple[bool, int]]) -> None:
    two = {"parallel_config": {"model_parallel": 2}}
    assert asked(None, use_parallel=True) == (True, 1)
    assert asked({"use_parallel": True, **two}) == (True, 2)
    assert asked({"use_parallel": True}, model_parallel=2) == (True, 2)
    with pytest.raises(ConfigError, match="use_parallel is False, 2 processes were started"):
        asked({"use_parallel": True}, use_parallel=False)


def test_a_program_has_one_copy_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "RANK_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    config = AutoConfig.from_pretrained("demo", use_parallel=True, data_parallel=2).inference_config
    with pytest.raises(ConfigError, match="data_parallel: a program of your own has one copy of the model; give"):
        load(GenerativeModel, config, print)

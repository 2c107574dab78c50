"""Loading: sections, inheritance, the order of sources, and the record of where a key was set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inference.config import InferenceConfig, Override, load_config, override_config, parse_override
from inference.config.layer import Layer, dotted
from inference.config.relative_paths import ANY, INPUT_PATHS, resolve_relative_paths
from inference.errors import ConfigError

# The older style of MindFormers: the model written out, training keys beside it.
OLD_STYLE = """\
seed: 0
output_dir: './output' # where things go
load_checkpoint: ''
src_strategy_path_or_dir: ''
auto_trans_ckpt: False
only_save_strategy: False
resume_training: False
run_mode: 'predict'
trainer:
  type: CausalLanguageModelingTrainer
  model_name: 'tiny'
runner_config:
  epochs: 1
  sink_mode: True
optimizer:
  type: AdamW
  eps: 1.e-8
train_dataset: &data
  data_loader: {type: MindDataset, dataset_dir: ""}
  input_columns: ["input_ids"]
train_dataset_task:
  dataset_config: *data
callbacks:
  - type: MFLossMonitor
  - type: ObsMonitor
use_parallel: False
parallel:
  parallel_mode: 1
  gradients_mean: False
  strategy_ckpt_config: {save_file: "./strategy.ckpt"}
parallel_config:
  data_parallel: 1
  model_parallel: 2
  micro_batch_num: 1
  vocab_emb_dp: True
micro_batch_interleave_num: 1
context:
  mode: 0
  device_target: "Ascend"
  max_device_memory: "58GB"
  save_graphs: False
  ascend_config:
    precision_mode: "must_keep_origin_dtype"
model:
  model_config:
    type: LlamaConfig
    batch_size: 1
    seq_length: 512
    hidden_size: 64
    num_layers: 2
    num_heads: 4
    n_kv_heads: 2
    vocab_size: 256
    multiple_of: 32
    rms_norm_eps: 1.0e-5
    bos_token_id: 1
    eos_token_id: 2
    pad_token_id: 0
    ignore_token_id: -100
    compute_dtype: "float16"
    layernorm_compute_type: "float32"
    use_past: True
    scaling_factor: 1.0
    extend_method: "None"
    use_flash_attention: True
    is_dynamic: True
    qkv_concat: False
    offset: 0
    checkpoint_name_or_path: "tiny"
    repetition_penalty: 1
    max_decode_length: 128
    top_k: 3
    top_p: 1
    do_sample: False
  arch:
    type: LlamaForCausalLM
processor:
  return_tensors: ms
  tokenizer:
    unk_token: '<unk>'
    pad_token: null
    type: LlamaTokenizer
  type: LlamaProcessor
metric:
  type: PerplexityMetric
profile: False
layer_scale: False
remote_save_url: "not used"
"""

# The newer style: a Hugging Face directory, and a few keys over its config.json.
NEW_STYLE = """\
seed: 0
run_mode: 'predict'
use_legacy: False
load_ckpt_format: 'safetensors'
trainer: {type: CausalLanguageModelingTrainer, model_name: 'qwen3'}
parallel_config: {data_parallel: 1, model_parallel: 1}
pretrained_model_dir: '/path/hf_dir'
model:
  model_config:
    compute_dtype: "bfloat16"
    layernorm_compute_dtype: "float32"
    rotary_dtype: "bfloat16"
    params_dtype: "bfloat16"
    add_qkv_bias: True
    sliding_window: null
generation_config:
  max_length: 64
  temperature: 1e-1
context:
  mode: GRAPH_MODE
  enable_graph_kernel: False
  infer_boost: "on"
parallel:
  parallel_mode: "MANUAL_PARALLEL"
  enable_alltoall: False
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write


def test_old_style(write) -> None:
    config = load_config(write("old.yaml", OLD_STYLE))
    settings = config.model.model_config
    assert config.model.arch.type == "LlamaForCausalLM"
    assert settings.given_architecture() == {
        "type": "LlamaConfig",
        "seq_length": 512,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "n_kv_heads": 2,
        "vocab_size": 256,
        "multiple_of": 32,
        "rms_norm_eps": 1e-5,
        "scaling_factor": 1.0,
        "extend_method": "None",
    }
    assert config.context.device_target == "Ascend"
    assert config.context.ascend_config == {"precision_mode": "must_keep_origin_dtype"}
    assert config.parallel.parallel_mode == "SEMI_AUTO_PARALLEL"
    assert config.parallel_config.model_parallel == 2
    assert config.load_checkpoint is None
    assert config.processor.tokenizer.given() == {"unk_token": "<unk>", "type": "LlamaTokenizer"}
    generation = config.generation()
    assert (generation.max_length, generation.top_k, generation.top_p, generation.greedy) == (
        128,
        3,
        1.0,
        True,
    )
    assert (generation.eos_token_id, generation.pad_token_id, generation.seed) == ((2,), 0, 0)


def test_new_style(write) -> None:
    config = load_config(write("new.yaml", NEW_STYLE))
    assert config.pretrained_model_dir == "/path/hf_dir"
    assert config.model.model_config.given_architecture() == {"qkv_has_bias": True, "sliding_window": None}
    assert config.model.model_config.param_init_type == "bfloat16"
    assert config.context.mode == 0
    assert config.context.device_target == "CPU"
    assert config.generation().temperature == 0.1


def test_unused_keys_are_reported_with_their_lines(write) -> None:
    unused = dict(load_config(write("old.yaml", OLD_STYLE)).unused_keys)
    lines = OLD_STYLE.splitlines()
    expected = ("runner_config", "optimizer", "callbacks", "profile", "remote_save_url", "resume_training")
    for key in expected:
        line = next(number for number, text in enumerate(lines, 1) if text.startswith(f"{key}:"))
        assert unused[key] == f"old.yaml:{line}"
    assert "model.model_config.ignore_token_id" in unused
    assert "model.model_config.compute_dtype" in unused
    assert "parallel.gradients_mean" in unused
    assert "model.model_config.hidden_size" not in unused
    assert "runner_config.epochs" not in unused


def test_defaults() -> None:
    config = load_config({})
    assert (config.run_mode, config.context.device_target, config.context.mode) == ("predict", "CPU", 0)
    assert config.engine.block_size == 16
    assert config.engine.weight_dtype == "auto"
    assert config.output.format is None and config.output.form == "text"
    assert config.origin("engine.block_size") == "default"
    assert config.sources == ()


def test_config_is_frozen() -> None:
    config = load_config({"seed": 1})
    for change in (lambda: setattr(config, "seed", 2), lambda: setattr(config.engine, "block_size", 2)):
        with pytest.raises(ValidationError, match="frozen"):
            change()
    with pytest.raises(Exception, match="cannot assign"):
        config.model.hub_id = "a/b"  # type: ignore[misc]


def test_call_of_mindformers_build_context() -> None:
    config = load_config({"context": {"mode": 0}, "parallel": {}, "parallel_config": {}})
    assert config.context.mode == 0
    assert config.origin("context.mode") == "mapping"


def test_base_config_has_lower_priority(write) -> None:
    write("base/a.yaml", "seed: 1\ncontext: {device_id: 3, mode: 0}\ngeneration_config: {top_k: 9}\n")
    write("base/b.yaml", "base_config: a.yaml\ncontext: {device_id: 4}\n")
    config = load_config(write("child.yaml", "base_config: base/b.yaml\ngeneration_config: {top_p: 0.5}\n"))
    assert (config.seed, config.context.device_id, config.context.mode) == (1, 4, 0)
    assert config.generation_config.given() == {"top_k": 9, "top_p": 0.5}
    assert config.sources == ("base/a.yaml", "base/b.yaml", "child.yaml")
    assert config.origin("seed") == "base/a.yaml:1"
    assert config.origin("context.device_id") == "base/b.yaml:2"
    assert config.origin("generation_config.top_p") == "child.yaml:2"


def test_base_config_list_and_null(write) -> None:
    write("a.yaml", "seed: 1\nprocessor: {chat: True}\n")
    write("b.yaml", "seed: 2\noutput_dir: out\n")
    config = load_config(write("child.yaml", "base_config: [a.yaml, b.yaml]\nprocessor: null\n"))
    assert (config.seed, config.output_dir, config.processor.chat) == (2, "out", False)


def test_base_config_cycle(write) -> None:
    write("a.yaml", "base_config: b.yaml\n")
    write("b.yaml", "seed: 1\nbase_config: a.yaml\n")
    with pytest.raises(ConfigError, match=r"^b.yaml:2: base_config leads back to a.yaml"):
        load_config("a.yaml")


def test_base_config_missing(write) -> None:
    with pytest.raises(ConfigError, match=r"^c.yaml:2: base_config: there is no file base/none.yaml"):
        load_config(write("c.yaml", "seed: 1\nbase_config: base/none.yaml\n"))


def test_merge_keys_and_anchors(write) -> None:
    text = """\
processor: {chat: &on True}
engine: &shared
  block_size: 32
  threads: 2
output:
  echo: *on
context:
  jit_config:
    <<: *shared
    threads: 3
serve:
  <<: [{port: 1}, {port: 2, host: a}]
"""
    config = load_config(write("m.yaml", text))
    assert config.output.echo is True
    assert config.context.jit_config == {"block_size": 32, "threads": 3}
    assert config.serve.given() == {"port": 1, "host": "a"}
    assert config.origin("context.jit_config.block_size") == "m.yaml:3"


def test_overrides_outrank_the_file(write) -> None:
    path = write("x.yaml", "seed: 1\ngeneration_config: {top_k: 5}\nuse_parallel: False\n")
    overrides = [
        Override("generation_config.top_k", 3, "--top_k"),
        parse_override("use_parallel=True"),
        parse_override("seed=7"),
        Override("seed", 0, "--seed"),
    ]
    config = load_config(path, overrides=overrides)
    assert (config.generation_config.top_k, config.use_parallel, config.seed) == (3, True, 0)
    assert config.origin("generation_config.top_k") == "--top_k"
    assert config.origin("use_parallel") == "--options"
    assert config.origin("seed") == "--seed"


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("load_checkpoint=2024", "load_checkpoint", "2024"),
        ("load_checkpoint=no", "load_checkpoint", "no"),
        ("output_dir=1e-5", "output_dir", "1e-5"),
        ("save_file=3", "output.save_file", "3"),
        ("generation_config.stop=no", "generation_config.stop", ("no",)),
        ("generation_config.stop=1,2", "generation_config.stop", ("1,2",)),
        ('generation_config.stop=["a", "b"]', "generation_config.stop", ("a", "b")),
        ("generation_config.eos_token_id=1,2", "generation_config.eos_token_id", (1, 2)),
        ("engine.kv_cache_memory=2GiB", "engine.kv_cache_memory", 2 * 1024**3),
        ("engine.kv_cache_memory=1000", "engine.kv_cache_memory", 1000),
        ("model.model_config.rms_norm_eps=1e-5", "model.model_config.rms_norm_eps", 1e-5),
    ],
)
def test_override_suits_the_type_of_its_key(assignment: str, path: str, value: object) -> None:
    node: object = load_config({}, overrides=[parse_override(assignment)])
    for name in path.split("."):
        node = getattr(node, name)
    assert node == value


def test_text_of_a_flag_is_read_by_the_type_of_its_key() -> None:
    config = load_config({}, overrides=[Override("generation_config.top_k", "7", "--top_k")])
    assert config.generation_config.top_k == 7


def test_override_config_does_not_change_the_original(write) -> None:
    config = load_config(write("x.yaml", "seed: 1\noutput_dir: a\n"))
    other = override_config(config, [Override("seed", 2, "call")])
    assert (config.seed, other.seed, other.output_dir) == (1, 2, "a")
    assert (other.origin("seed"), other.origin("output_dir")) == ("call", "x.yaml:2")
    assert other.sources == ("x.yaml",)


@pytest.mark.parametrize(
    ("base", "child", "expected"),
    [
        ("max_new_tokens", "max_length", (10, None)),
        ("max_length", "max_new_tokens", (None, 10)),
        ("max_length", "max_length", (10, None)),
    ],
)
def test_the_later_source_decides_between_the_lengths(base: str, child: str, expected: tuple) -> None:
    low = {"generation_config": {base: 99}}
    generation = load_config(low, overrides=[Override(f"generation_config.{child}", 10, "--x")]).generation()
    assert (generation.max_length, generation.max_new_tokens) == expected


def test_a_flag_outranks_the_other_section_of_the_file() -> None:
    low = {"generation_config": {"top_k": 9, "seed": 1}, "model": {"model_config": {"num_layers": 4}}}
    overrides = [
        Override("model.model_config.top_k", 2, "--a"),
        Override("seed", 5, "--seed"),
        Override("model.model_config.num_hidden_layers", 1, "--b"),
    ]
    config = load_config(low, overrides=overrides)
    assert (config.generation().top_k, config.generation().seed) == (2, 5)
    assert config.model.model_config.given_architecture() == {"num_hidden_layers": 1}


def test_override_of_one_key_keeps_its_neighbors() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0}
    low = {"model": {"model_config": {"rope_scaling": scaling}}}
    config = load_config(low, overrides=[parse_override("model.model_config.rope_scaling.factor=4.0")])
    assert config.model.model_config.rope_scaling == {"rope_type": "llama3", "factor": 4.0}


SEEDS = st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=5)


@given(SEEDS)
def test_the_last_override_wins(seeds: list[int | None]) -> None:
    overrides = [Override("seed", seed, "--seed") for seed in seeds]
    assert load_config({"seed": 9}, overrides=overrides).seed == seeds[-1]


TREES = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(st.integers(), lambda child: st.dictionaries(st.sampled_from("abc"), child), max_leaves=6),
)


def _laid(base: dict, top: dict) -> dict:
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _laid(out[key], value) if both else value
    return out


@given(st.lists(TREES, min_size=1, max_size=4))
def test_layers_merge_mapping_by_mapping(trees: list[dict]) -> None:
    import functools

    from inference.config.layer import lay_all, layer_from_mapping

    layers = [layer_from_mapping(tree, f"source{number}") for number, tree in enumerate(trees)]
    merged = lay_all(layers)
    assert merged.values == functools.reduce(_laid, trees)
    for path, origin in merged.origins.items():
        source = trees[int(origin.removeprefix("source"))]
        for key in path:
            source = source[key]
        value = merged.get(path)
        assert isinstance(value, dict) == isinstance(source, dict)
        if not isinstance(value, dict):
            assert value == source


def test_to_yaml_reads_back(write) -> None:
    for text in (OLD_STYLE, NEW_STYLE):
        config = load_config(write("in.yaml", text), overrides=[parse_override("generation_config.stop=a: #b")])
        printed = config.to_yaml()
        again = load_config(write("out.yaml", printed))
        assert again == config
        assert dict(again.unused_keys).keys() == dict(config.unused_keys).keys()
        assert again.generation() == config.generation()
        assert again.model.model_config.given() == config.model.model_config.given()


def test_to_yaml_states_where_each_key_was_set(write) -> None:
    config = load_config(write("x.yaml", "\nseed: 3\n"), overrides=[Override("engine.threads", 2, "--threads")])
    lines = config.to_yaml().splitlines()
    assert "seed: 3  # x.yaml:2" in lines
    assert "  threads: 2  # --threads" in lines
    assert "  block_size: 16  # default" in lines


TEXTS = st.text(min_size=1)


@given(stop=st.lists(TEXTS, max_size=3), directory=TEXTS, free=st.dictionaries(TEXTS, TEXTS | st.floats(-9, 9)))
def test_to_yaml_keeps_any_text(stop: list[str], directory: str, free: dict, tmp_path_factory) -> None:
    steps = {"a": {"arguments": free}}
    config = load_config({"generation_config": {"stop": stop}, "output_dir": directory, "pipeline": {"steps": steps}})
    path = tmp_path_factory.getbasetemp() / "printed.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert again.generation().stop == tuple(stop)


def test_merged_is_a_copy_of_everything() -> None:
    config = load_config({"optimizer": {"type": "AdamW"}, "seed": 1})
    config.merged()["seed"] = 2
    assert config.merged() == {"optimizer": {"type": "AdamW"}, "seed": 1}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"model": {"model_config": {"pet_config": {"pet_type": "ptuning2"}}}}, "adapters"),
        ({"model": {"model_config": {"quantization_config": {"quant_method": "rtn"}}}}, "quantized weights"),
    ],
)
def test_unsupported_features_load_and_are_rejected_in_use(settings: dict, what: str) -> None:
    config = load_config(settings)
    with pytest.raises(ConfigError, match=f"{what}.* not supported yet"):
        config.check_supported()


def test_adapters_are_named_as_a_mapping_or_in_pairs() -> None:
    for adapters in ({"a": "x", "b": "y=z"}, ["a=x", "b=y=z"]):
        assert load_config({"adapters": adapters}).adapters == {"a": "x", "b": "y=z"}
    with pytest.raises(ConfigError, match="adapters must be names and paths"):
        load_config({"adapters": ["a"]})


def test_empty_sections_are_not_rejected() -> None:
    model = {"pet_config": {"pet_type": ""}, "quantization_config": None}
    load_config({"model": {"model_config": model}}).check_supported()


def test_every_key_is_described() -> None:
    def check(kind: type) -> None:
        for name, field in kind.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{kind.__name__}.{name}"
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation)

    from inference.config.model_settings import ModelSettings

    check(InferenceConfig)
    check(ModelSettings)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from inference.config import flags, load_config, locate;"
        "from inference.config.presets import find_preset; load_config(find_preset('llama2_7b'));"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('mindspore', 'mindformers', 'numpy', 'torch', 'huggingface_hub', 'click')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("pattern", INPUT_PATHS, ids=dotted)
def test_relative_paths_are_searched_beside_the_yaml_and_then_here(pattern, tmp_path, monkeypatch) -> None:
    """The same rule for every key; a path in neither place, a preset's name and an absolute path stay as they are."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()

    def value_of(written: str) -> str:
        layer = Layer()
        path = tuple("name" if key == ANY else key for key in pattern)
        layer.put(path, written)
        resolve_relative_paths(layer, "sub")
        return layer.get(path)

    assert value_of("there") == "there"
    Path("there").mkdir()
    assert value_of("there") == "there"
    Path("sub/there").mkdir()
    assert value_of("there") == "sub/there"
    assert value_of("../sub/there") == "sub/there"
    assert value_of("nowhere") == "nowhere"
    assert value_of(str(tmp_path)) == str(tmp_path)
    Path("sub/demo").mkdir()
    assert value_of("demo") == "demo" and value_of("./demo") == "sub/demo"


def test_relative_paths_of_a_file_and_of_its_base(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a/model/x", "b/lora/x", "b/in/p.txt"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    Path("a/base.yaml").write_text("load_checkpoint: model\ninput_data: [in/*.txt, hello]\n")
    Path("b/own.yaml").write_text("base_config: ../a/base.yaml\nadapters: {l: lora}\noutput: {save_file: out.jsonl}\n")
    config = load_config("b/own.yaml", overrides=[Override("processor.tokenizer.vocab_file", "in/p.txt", "--x")])
    assert config.load_checkpoint == "a/model"
    assert config.input_data == ("in/*.txt", "hello")
    assert config.adapters == {"l": "b/lora"}
    assert config.output.save_file == "out.jsonl"
    assert config.processor.tokenizer.vocab_file == "in/p.txt"

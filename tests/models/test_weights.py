"""Which stored tensor goes where: names of Hugging Face and MindFormers, what is listed as wrong, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.checkpoint.open import open_checkpoint
from inference.checkpoint.tensor import Checkpoint, Segment, StoredTensor
from inference.errors import CheckpointError
from inference.kernels.formats import Format
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import model_config_from
from inference.models.weights import loading, weight_formats
from inference.models.weights.parameters import TensorPlace, hugging_face_name, parameter_shapes, tensor_places

GOLDENS = Path(__file__).parents[1] / "goldens"
# Those with Llama's tensors; test_layouts has the others.
CASES = sorted(
    path.parent.name
    for path in GOLDENS.glob("*/config.json")
    if path.parent.name.startswith(("llama", "mistral", "qwen")) and not path.parent.name.endswith("_moe")
)
# Those with experts.
ROUTED = ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3")
ROOT = Path(__file__).parents[2]
# The pieces of MindFormers' Llama names, as its convert_weight.py writes them.
MINDFORMERS = {
    "embed_tokens.weight": "tok_embeddings.embedding_weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
    "model.norm.": "model.norm_out.",
}


def golden(name: str) -> tuple[Checkpoint, ModelConfig]:
    directory = GOLDENS / name
    values = json.loads((directory / "config.json").read_text())
    return open_checkpoint(directory), model_config_from(values, str(directory))


def mindformers_name(name: str) -> str:
    for ours, theirs in MINDFORMERS.items():
        name = name.replace(ours, theirs)
    return name


def renamed(checkpoint: Checkpoint) -> Checkpoint:
    return {
        theirs: replace(tensor, name=theirs)
        for theirs, tensor in ((mindformers_name(name), tensor) for name, tensor in checkpoint.items())
    }


def fake(name: str, *shape: int) -> StoredTensor:
    return StoredTensor(name, "float32", shape, (Segment(Path("nowhere"), 0, 4 * int(np.prod(shape))),))


def load(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, np.ndarray]:
    """All parameters in float32."""
    arrays = {name: np.full(shape, np.nan, np.float32) for name, shape in parameter_shapes(config).items()}
    places = {name: loading.Destination(array, None, Format.FLOAT32) for name, array in arrays.items()}
    loading.load(loading.fit(checkpoint, config, Path("model")), places)
    return arrays


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_golden_model_has_its_place(name: str) -> None:
    """All of every parameter is written, and q, k, v and gate, up lie one after the other in the fused ones."""
    checkpoint, config = golden(name)
    arrays = load(checkpoint, config)
    assert not any(np.isnan(array).any() for array in arrays.values())
    values = {}
    for stored, tensor in checkpoint.items():
        values[stored] = np.empty(tensor.shape, np.float32)
        tensor.read_into(values[stored])
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        parts = [values[f"model.layers.1.self_attn.{part}_proj.{kind}"] for part in "qkv"]
        assert np.array_equal(arrays[f"model.layers.1.self_attn.qkv_proj.{kind}"], np.concatenate(parts))
    gate_up = [values[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert np.array_equal(arrays["model.layers.0.mlp.gate_up_proj.weight"], np.concatenate(gate_up))
    for whole in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.down_proj.weight"):
        assert np.array_equal(arrays[whole], values[whole])
    assert ("lm_head.weight" in arrays) == (not config.tie_embeddings)


@pytest.mark.parametrize("name", CASES)
def test_mindformers_names_are_the_same_tensors(name: str) -> None:
    checkpoint, config = golden(name)
    theirs = renamed(checkpoint)
    assert not any("self_attn" in name or "mlp" in name or "layernorm" in name for name in theirs)
    expected, found = load(checkpoint, config), load(theirs, config)
    assert all(np.array_equal(found[parameter], array) for parameter, array in expected.items())


# The pieces of MindFormers' Megatron-like names, as the weight_mapping of its model classes writes them.
MEGATRON = {
    "model.embed_tokens.": "embedding.word_embeddings.",
    "self_attn.q_proj.": "self_attention.linear_q.",
    "self_attn.k_proj.": "self_attention.linear_k.",
    "self_attn.v_proj.": "self_attention.linear_v.",
    "self_attn.o_proj.": "self_attention.linear_proj.",
    "self_attn.q_norm.": "self_attention.q_layernorm.",
    "self_attn.k_norm.": "self_attention.k_layernorm.",
    "self_attn.q_a_proj.": "self_attention.linear_q_down_proj.",
    "self_attn.q_a_layernorm.": "self_attention.q_layernorm.",
    "self_attn.q_b_proj.": "self_attention.linear_q_up_proj.",
    "self_attn.kv_a_proj_with_mqa.": "self_attention.linear_kv_down_proj.",
    "self_attn.kv_a_layernorm.": "self_attention.kv_layernorm.",
    "self_attn.kv_b_proj.": "self_attention.linear_kv_up_proj.",
    ".gate.weight": ".router.weight",
    ".gate.e_score_correction_bias": ".router.expert_bias",
    ".gate_proj.": ".gating.",
    ".down_proj.": ".linear_fc2.",
    ".up_proj.": ".hidden.",
    ".post_attention_layernorm.": ".pre_mlp_layernorm.",
    "model.norm.": "decoder.final_layernorm.",
    "lm_head.": "output_layer.",
    "model.layers.": "decoder.layers.",
}


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "deepseek_v3"])
def test_megatron_like_names_are_the_same_tensors(name: str) -> None:
    checkpoint, config = golden(name)
    theirs = {}
    for ours, tensor in checkpoint.items():
        spelled = ours
        for piece, other in MEGATRON.items():
            spelled = spelled.replace(piece, other)
        assert not spelled.startswith("model.") and "self_attn" not in spelled
        theirs[spelled] = replace(tensor, name=spelled)
    expected, found = load(checkpoint, config), load(theirs, config)
    assert all(np.array_equal(found[parameter], array, equal_nan=True) for parameter, array in expected.items())


def test_mindformers_stacked_experts_are_the_same(tmp_path: Path) -> None:
    """weight1 and weight2, as its ExpertsConvertOp lays them out."""
    checkpoint, config = golden("qwen3_moe")
    assert config.experts is not None
    count, width = config.experts.routing.experts, config.experts.width
    theirs = {name: tensor for name, tensor in checkpoint.items() if ".experts." not in name}
    for layer in (0, 2):
        prefix = f"model.layers.{layer}.mlp.experts."

        def values(part: str, prefix: str = prefix) -> np.ndarray:
            return np.stack([values_of(checkpoint[f"{prefix}{e}.{part}_proj.weight"]).T for e in range(count)])

        both = np.concatenate([values("gate"), values("up")], 2).reshape(-1, 2 * width)
        for name, array in (("weight1", both), ("weight2", values("down").reshape(-1, config.hidden_size))):
            path = tmp_path / f"{layer}.{name}"
            array.tofile(path)
            theirs[prefix + name] = StoredTensor(
                prefix + name, "float32", array.shape, (Segment(path, 0, array.nbytes),)
            )
    expected, found = load(checkpoint, config), load(theirs, config)
    for parameter, array in expected.items():
        written = ~np.isnan(array)
        assert written.any() and np.array_equal(found[parameter][written], array[written])


def values_of(tensor: StoredTensor) -> np.ndarray:
    values = np.empty(tensor.shape, np.float32)
    tensor.read_into(values)
    return values


@pytest.mark.parametrize("name", ROUTED)
def test_experts_are_stacked_by_rows(name: str) -> None:
    checkpoint, config = golden(name)
    arrays, experts = load(checkpoint, config), config.experts
    assert experts is not None
    stored = {hugging_face_name(key, config.storage.names): values_of(tensor) for key, tensor in checkpoint.items()}
    for layer in range(config.num_layers):
        if config.experts_of(layer) is None:
            continue
        mlp = f"model.layers.{layer}.mlp."
        sizes = [("experts.", [f"experts.{e}." for e in range(experts.routing.experts)], experts.width)]
        sizes += [("shared_experts.", ["shared_experts."], experts.shared_width)] * bool(experts.shared_width)
        for target, names, width in sizes:
            gate_up = arrays[f"{mlp}{target}gate_up_proj.weight"].reshape(len(names), 2, -1, config.hidden_size)
            down = arrays[f"{mlp}{target}down_proj.weight"].reshape(len(names), -1, width)
            assert gate_up.shape[2] % 16 == 0 and down.shape[1] % 16 == 0
            for index, one in enumerate(names):
                assert np.array_equal(gate_up[index, 0, :width], stored[f"{mlp}{one}gate_proj.weight"])
                assert np.array_equal(gate_up[index, 1, :width], stored[f"{mlp}{one}up_proj.weight"])
                assert np.array_equal(down[index, : config.hidden_size], stored[f"{mlp}{one}down_proj.weight"])
        router = arrays[f"{mlp}router.weight"]
        assert np.array_equal(router[: experts.routing.experts], stored[f"{mlp}gate.weight"])
        assert len(router) == experts.routing.experts + experts.shared_gate


def test_multi_token_prediction_layers_are_skipped() -> None:
    checkpoint, config = golden("deepseek_v3")
    assert config.draft_layers == 1
    extra = f"model.layers.{config.num_layers}.eh_proj.weight"
    loading.fit({**checkpoint, extra: fake(extra, 3, 4)}, config, Path("model"))
    beyond = f"model.layers.{config.num_layers + 1}.eh_proj.weight"
    with pytest.raises(CheckpointError, match=f"1 unexpected: {beyond}"):
        loading.fit({**checkpoint, beyond: fake(beyond, 3, 4)}, config, Path("model"))


def test_a_tensor_that_serves_twice_is_missing_once() -> None:
    checkpoint, config = golden("deepseek_v2_lite")
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    with pytest.raises(CheckpointError, match=f"tensors 1 missing: {name}$"):
        loading.fit({key: tensor for key, tensor in checkpoint.items() if key != name}, config, Path("model"))


@pytest.mark.parametrize("name", ["llama2_mha", "qwen3_tied"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("spelling", [mindformers_name, str], ids=["mindformers", "hugging_face"])
def test_a_mindspore_checkpoint_loads_equal(
    graph_mode: None, tmp_path: Path, name: str, dtype: str, spelling: Callable[[str], str]
) -> None:
    """Saved by MindSpore under either names, from the golden model rounded to the type."""
    import mindspore

    checkpoint, config = golden(name)
    data, expected = [], {}
    for stored, tensor in checkpoint.items():
        array = np.empty(tensor.shape, np.float32)
        tensor.read_into(array)
        value = mindspore.Tensor(array).astype(getattr(mindspore, dtype))
        data.append({"name": spelling(stored), "data": value})
        expected[stored] = value.astype(mindspore.float32).asnumpy()
    path = tmp_path / "llama.ckpt"
    mindspore.save_checkpoint(data, str(path))
    arrays = load(open_checkpoint(path), config)
    for place in tensor_places(config):
        rows = slice(place.first_row, place.first_row + place.shape[0])
        assert np.array_equal(arrays[place.parameter][rows], expected[place.name])


@pytest.mark.parametrize("name", [place.name for place in tensor_places(golden("qwen3")[1])])
def test_a_name_in_either_spelling(name: str) -> None:
    assert hugging_face_name(name) == name
    assert hugging_face_name(mindformers_name(name)) == name


class TestWhatDoesNotFit:
    def test_missing_unexpected_and_misshapen_tensors_are_listed(self) -> None:
        checkpoint, config = golden("llama2_mha")
        del checkpoint["model.layers.0.mlp.up_proj.weight"]
        del checkpoint["model.norm.weight"]
        for name, shape in (("model.layers.1.self_attn.q_proj.weight", (32, 16)), ("lm_head.weight", (64, 64))):
            checkpoint[name] = fake(name, *shape)
        checkpoint["model.layers.2.mlp.up_proj.weight"] = fake("model.layers.2.mlp.up_proj.weight", 1)
        with pytest.raises(CheckpointError) as caught:
            loading.fit(checkpoint, config, Path("my/model"))
        message = str(caught.value)
        assert "my/model does not fit the config" in message and "\n" not in message
        assert "2 missing: model.layers.0.mlp.up_proj.weight, model.norm.weight;" in message
        assert "1 unexpected: model.layers.2.mlp.up_proj.weight;" in message
        assert "2 misshapen: model.layers.1.self_attn.q_proj.weight is [32, 16], the config says [32, 32]," in message
        assert "lm_head.weight is [64, 64], the config says [128, 32]" in message

    def test_long_lists_are_counted(self) -> None:
        checkpoint, config = golden("llama2_mha")
        with pytest.raises(CheckpointError, match=r"9 missing: model\.layers\.2\.input.*, \.\.\.$") as caught:
            loading.fit(checkpoint, replace(config, num_layers=3), Path("model"))
        assert str(caught.value).count("model.layers.2.") == loading.SHOWN

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_layers": 1}, "9 unexpected"),
            ({"hidden_size": 64}, "misshapen"),
            ({"vocab_size": 127}, r"embed_tokens.weight is \[128, 32\], the config says \[127, 32\]"),
            ({"num_kv_heads": 1}, r"k_proj.weight is \[32, 32\], the config says \[8, 32\]"),
            ({"qk_norm": True}, "4 missing: .*q_norm"),
            ({"qkv_bias": True}, "6 missing: .*q_proj.bias"),
            ({"mlp_bias": True, "down_bias": True}, "6 missing: .*gate_proj.bias"),
            ({"output_bias": True}, "2 missing: .*o_proj.bias"),
        ],
    )
    def test_a_config_of_another_model(self, changes: dict, message: str) -> None:
        checkpoint, config = golden("llama2_mha")
        with pytest.raises(CheckpointError, match=message):
            loading.fit(checkpoint, replace(config, **changes), Path("model"))

    def test_a_model_without_its_biases(self) -> None:
        checkpoint, config = golden("qwen2")
        with pytest.raises(CheckpointError, match="6 unexpected: .*bias"):
            loading.fit(checkpoint, replace(config, qkv_bias=False), Path("model"))

    def test_a_missing_head(self) -> None:
        checkpoint, config = golden("qwen2_tied")
        with pytest.raises(CheckpointError, match="1 missing: lm_head.weight"):
            loading.fit(checkpoint, replace(config, tie_embeddings=False), Path("model"))

    def test_an_empty_checkpoint(self) -> None:
        with pytest.raises(CheckpointError, match="21 missing"):
            loading.fit({}, golden("llama2_mha")[1], Path("model"))

    def test_a_tensor_in_both_spellings(self) -> None:
        checkpoint, config = golden("llama2_mha")
        twice = renamed({"model.norm.weight": checkpoint["model.norm.weight"]})
        with pytest.raises(CheckpointError, match="model.norm.weight.*model.norm_out.weight"):
            loading.fit({**checkpoint, **twice}, config, Path("model"))


def test_a_tied_head_may_be_stored_too() -> None:
    checkpoint, config = golden("llama32_tied")
    assert "lm_head.weight" not in checkpoint
    expected = load(checkpoint, config)
    found = load({**checkpoint, "lm_head.weight": fake("lm_head.weight", 128, 32)}, config)
    assert found.keys() == expected.keys()


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.freqs_mgr.freqs_cos", "model.rotary_emb.inv_freq"]
)
def test_buffers_of_older_exporters_are_skipped(name: str) -> None:
    checkpoint, config = golden("llama2_mha")
    pairs = loading.fit({**checkpoint, name: fake(name, 4)}, config, Path("model"))
    assert [place.name for _, place in pairs] == [place.name for place in tensor_places(config)]


def test_progress_sees_every_tensor_once() -> None:
    checkpoint, config = golden("qwen3")
    pairs = loading.fit(checkpoint, config, Path("model"))
    arrays = {name: np.empty(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    seen: list[StoredTensor] = []
    places = {name: loading.Destination(array, None, Format.FLOAT32) for name, array in arrays.items()}
    loading.load(pairs, places, seen.append)
    assert {tensor.name for tensor in seen} == set(checkpoint) and len(seen) == len(checkpoint)


def test_random_weights_are_those_of_their_seed() -> None:
    config = golden("qwen2")[1]

    def fill(seed: int) -> dict[str, np.ndarray]:
        shapes = parameter_shapes(config)
        arrays = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
        places = {name: loading.Destination(array, None, Format.FLOAT32) for name, array in arrays.items()}
        loading.fill_random(shapes, places, seed)
        return arrays

    first, again, other = fill(0), fill(0), fill(1)
    assert all(np.array_equal(array, again[name]) for name, array in first.items())
    matrix = "model.layers.0.mlp.down_proj.weight"
    assert not np.array_equal(first[matrix], other[matrix])
    assert first[matrix].std() == pytest.approx(0.02, rel=0.1)
    assert (first["model.norm.weight"] == 1).all() and (first["model.layers.0.self_attn.qkv_proj.bias"] == 0).all()


LOAD = """
import importlib, json, sys
from pathlib import Path
from inference.context import build_context
from inference.models.weights import loading, weight_formats
from inference.checkpoint.open import open_checkpoint
from inference.models.architecture.registry import model_config_from
from inference.models.runner import ModelRunner

def memory(key):
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

directory = Path(sys.argv[1])
build_context({'context': {'mode': 0}})
config = model_config_from(json.loads((directory / 'config.json').read_text()), 'config.json')
pairs = loading.fit(open_checkpoint(directory), config, directory)
before = memory('VmRSS:')
packed = sys.argv[2] == 'packed'
kernels = importlib.import_module('inference.kernels.native' if packed else 'inference.kernels.stock')
weight_format = loading.Format.INT8 if packed else loading.Format.FLOAT32
sizes = {'num_blocks': 2, 'block_size': 16, 'weight_format': weight_format}
runner = ModelRunner(config, pairs, kernels=kernels, **sizes)
print(memory('VmHWM:') - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_loading_takes_the_model_and_little_more(tmp_path: Path, kind: str) -> None:
    """A bfloat16 checkpoint of 300 MB, sparse on disk: peak memory is the model, float32 or int8, and a few rows."""
    values = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 7,
        "num_attention_heads": 16,
        "max_position_embeddings": 128,
    }
    config = model_config_from(values, "config.json")
    (tmp_path / "config.json").write_text(json.dumps(values))
    header, end = {}, 0
    sizes = [2 * int(np.prod(place.shape)) for place in tensor_places(config)]
    for place, size in zip(tensor_places(config), sizes, strict=True):
        header[place.name] = {"dtype": "BF16", "shape": place.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 300 * 10**6
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), kind], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    growth, slack = int(done.stdout), 80 * 2**20
    parameters = weight_formats.weight_bytes(config, Format.INT8 if kind == "packed" else None)
    print(f"peak {growth / 1e6:.0f} MB, parameters {parameters / 1e6:.0f} MB")
    assert parameters < growth <= parameters + slack


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight_format", [Format.INT8, Format.INT4])
@pytest.mark.parametrize("packed", [True, False])
def test_weights_that_are_not_finite_are_rejected_by_name(
    tmp_path: Path, value: float, weight_format: Format, packed: bool
) -> None:
    """Integers would hold plausible numbers in their place."""
    rows = np.ones((64, 64), np.float32)
    rows[40, 3] = value
    rows.tofile(tmp_path / "bytes")
    tensor = StoredTensor("layer.weight", "float32", rows.shape, (Segment(tmp_path / "bytes", 0, rows.nbytes),))
    memory = weight_format if packed else None
    dtype, shape = weight_formats.memory_layout(rows.shape, memory)
    destination = loading.Destination(np.zeros(shape, dtype), memory, weight_format)
    places = [TensorPlace("layer.weight", rows.shape, "layer.weight")]
    places.append(replace(places[0], order=np.arange(64)[::-1]))
    for place in places:
        with pytest.raises(
            CheckpointError, match=f"tensor 'layer.weight' holds NaN or infinity, .* {weight_format.value}"
        ):
            destination.write(tensor, place)


def test_large_finite_weights_are_packed(tmp_path: Path) -> None:
    """Their sum overflows, they do not."""
    rows = np.full((64, 64), 1e4, np.float32)
    rows.tofile(tmp_path / "bytes")
    tensor = StoredTensor("layer.weight", "float32", rows.shape, (Segment(tmp_path / "bytes", 0, rows.nbytes),))
    _, shape = weight_formats.memory_layout(rows.shape, Format.INT8)
    destination = loading.Destination(np.zeros(shape, np.uint8), Format.INT8, Format.INT8)
    destination.write(tensor, TensorPlace("layer.weight", rows.shape, "layer.weight"))
    loading.check_finite(np.full(4, 3e38, np.float32))
    assert destination.array.any()

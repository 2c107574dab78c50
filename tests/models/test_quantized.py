"""Quantized checkpoints, packed here value by value as the formats say, against the same weights in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.config import load_config
from inference.errors import CheckpointError, ConfigError
from inference.generation.build import weight_format_of
from inference.generation.model import GenerativeModel
from inference.kernels.formats import PANEL, Format, pack, pack_codes_into, unpack
from inference.models.source import ModelSource, resolve
from inference.models.weights import loading, weight_formats
from inference.models.weights.float8 import VALUES
from inference.models.weights.parameters import parameter_shapes
from inference.models.weights.sharding import Shard

GOLDENS = Path(__file__).parents[1] / "goldens"
RANDOM = np.random.default_rng(5)
# What AutoAWQ calls its order: which column the n-th value of a word is.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Tensors = dict[str, np.ndarray]
# Of safetensors, by numpy's: bytes are 8-bit floats here, and two bytes the upper ones of a float32.
TYPES = {"f4": "F32", "f2": "F16", "i1": "I8", "i4": "I32", "i8": "I64", "u1": "F8_E4M3", "u2": "BF16"}


def save_file(tensors: Tensors, path: Path) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": TYPES[array.dtype.str[1:]], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values()))


def load_file(path: Path) -> Tensors:
    """The same backwards."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header, found = json.loads(data[8:start]), {}
    for name in header.keys() - {"__metadata__"}:
        kind = next(ours for ours, theirs in TYPES.items() if theirs == header[name]["dtype"])
        begin, end = header[name]["data_offsets"]
        found[name] = np.frombuffer(data[start + begin : start + end], kind).reshape(header[name]["shape"])
    return found


def as_float32(array: np.ndarray) -> np.ndarray:
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array.astype(np.float32)


def bits_first(values: np.ndarray, bits: int, order: list[int] | None = None) -> np.ndarray:
    """Packs along the last axis, a number at a time: the first in the lowest bits."""
    count = 32 // bits
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // count) * count), np.uint64)
    padded[..., : values.shape[-1]] = values
    words = np.zeros((*padded.shape[:-1], padded.shape[-1] // count), np.uint64)
    for word in range(words.shape[-1]):
        for place in range(count):
            column = word * count + (order[place] if order else place)
            words[..., word] |= padded[..., column] << np.uint64(bits * place)
    return words.astype(np.uint32).view(np.int32)


def quantize(
    weight: np.ndarray, bits: int, size: int | None, symmetric: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """weight [out, in] -> q [out, in], scales float16 [out, groups], zeros [out, groups], the group of each input."""
    if groups is None:
        groups = np.arange(weight.shape[1]) // (size or weight.shape[1])
    count, highest = groups.max() + 1, 2**bits - 1
    scales, zeros = np.zeros((len(weight), count), np.float16), np.zeros((len(weight), count), np.int64)
    for group in range(count):
        part = weight[:, groups == group]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        if symmetric:
            scales[:, group] = np.maximum(-low, high) / (highest // 2)
            zeros[:, group] = highest // 2 + 1
        else:
            scales[:, group] = (high - low) / highest
            zeros[:, group] = np.rint(-low / scales[:, group].astype(np.float32))
    q = np.rint(weight / scales[:, groups].astype(np.float32)) + zeros[:, groups]
    return np.clip(q, 0, highest).astype(np.int64), scales, zeros, groups


def value_of(q: np.ndarray, scales: np.ndarray, zeros: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return ((q - zeros[:, groups]) * scales[:, groups].astype(np.float32)).astype(np.float32)


def gptq(
    bits: int = 4, size: int | None = 32, symmetric: bool = True, layout: str = "gptq", act_order: bool = False
) -> Callable[[str, np.ndarray, Tensors], np.ndarray]:
    def write(layer: str, weight: np.ndarray, tensors: Tensors) -> np.ndarray:
        columns = weight.shape[1]
        groups = np.arange(columns) // (size or columns)
        if act_order:
            groups = np.random.default_rng(columns).permutation(groups)
        q, scales, zeros, groups = quantize(weight, bits, size, symmetric, groups)
        stored = (zeros - 1) % 2**bits if layout == "gptq" else zeros
        tensors[f"{layer}.qweight"] = np.ascontiguousarray(bits_first(q, bits).T)
        tensors[f"{layer}.qzeros"] = bits_first(np.ascontiguousarray(stored.T), bits)
        tensors[f"{layer}.scales"] = np.ascontiguousarray(scales.T)
        tensors[f"{layer}.g_idx"] = groups.astype(np.int32)
        # AutoGPTQ's layers all have a bias.
        tensors.setdefault(f"{layer}.bias", np.zeros(len(weight), np.float16))
        return value_of(q, scales, zeros, groups)

    return write


def awq(size: int | None = 32) -> Callable[[str, np.ndarray, Tensors], np.ndarray]:
    def write(layer: str, weight: np.ndarray, tensors: Tensors) -> np.ndarray:
        q, scales, zeros, groups = quantize(weight, 4, size, symmetric=False)
        tensors[f"{layer}.qweight"] = bits_first(np.ascontiguousarray(q.T), 4, AWQ_ORDER)
        tensors[f"{layer}.qzeros"] = bits_first(np.ascontiguousarray(zeros.T), 4, AWQ_ORDER)
        tensors[f"{layer}.scales"] = np.ascontiguousarray(scales.T)
        return value_of(q, scales, zeros, groups)

    return write


def int_quantized(layer: str, weight: np.ndarray, tensors: Tensors) -> np.ndarray:
    """w8a8 with a scale a row."""
    q, scales, zeros, groups = quantize(weight, 8, None, symmetric=True)
    tensors[f"{layer}.weight"] = (q - zeros[:, groups]).astype(np.int8)
    tensors[f"{layer}.weight_scale"] = scales.astype(np.float32)
    return value_of(q, scales, zeros, groups)


def pack_quantized(layer: str, weight: np.ndarray, tensors: Tensors) -> np.ndarray:
    """w4a16 in groups."""
    q, scales, zeros, groups = quantize(weight, 4, 32, symmetric=True)
    tensors[f"{layer}.weight_packed"] = bits_first(q, 4)
    tensors[f"{layer}.weight_scale"] = scales
    tensors[f"{layer}.weight_shape"] = np.array(weight.shape, np.int64)
    return value_of(q, scales, zeros, groups)


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    rule = {"type": "int", "symmetric": True, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"weights": rule, "input_activations": {"num_bits": 8}, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


def float8_value(code: int) -> float:
    """e4m3: 1 bit of sign, 4 of exponent, 3 of mantissa, read as text."""
    bits = f"{code:08b}"
    exponent, fraction = int(bits[1:5], 2), int(bits[5:], 2) / 8
    if bits[1:] == "1111111":
        return float("nan")
    size = fraction * 2**-6 if exponent == 0 else (1 + fraction) * 2 ** (exponent - 7)
    return -size if bits[0] == "1" else size


FLOAT8 = np.array([float8_value(code) for code in range(256)])


def float8(
    block: tuple[int, int] | None = None, scale_name: str = "weight_scale", scale_type: type = np.float32
) -> Callable[[str, np.ndarray, Tensors], np.ndarray]:
    """8-bit floats with a scale a block, a row (1, 0) or the whole matrix (None)."""

    def write(layer: str, weight: np.ndarray, tensors: Tensors) -> np.ndarray:
        height, width = block or weight.shape
        width = width or weight.shape[1]
        shape = -(-len(weight) // height), -(-weight.shape[1] // width)
        codes, scales, values = np.zeros(weight.shape, np.uint8), np.zeros(shape, np.float32), np.zeros_like(weight)
        for row, column in np.ndindex(shape):
            part = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
            scale = np.abs(weight[part]).max() / 448
            bits = np.array([scale], np.float32).view(np.uint32) & (0xFFFF0000 if scale_type is np.uint16 else ~0)
            scales[row, column] = scale = bits.view(np.float32)[0]
            codes[part] = np.nanargmin(np.abs(FLOAT8 * scale - weight[part][..., None]), axis=-1)
            values[part] = FLOAT8[codes[part]].astype(np.float32) * scale
        stored = (scales.view(np.uint32) >> 16).astype(np.uint16) if scale_type is np.uint16 else scales
        tensors[f"{layer}.weight"], tensors[f"{layer}.{scale_name}"] = codes, stored if block else stored.reshape(1)
        tensors[f"{layer}.input_scale"] = np.ones(1, np.float32)
        return values

    return write


def published_float8(*block: int) -> dict[str, Any]:
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)}


def float_quantized(strategy: str, **more: Any) -> dict[str, Any]:
    return compressed("float-quantized", type="float", num_bits=8, strategy=strategy, **more)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
W8A8 = compressed("int-quantized", num_bits=8, strategy="channel", group_size=None)
W4A16 = compressed("pack-quantized", num_bits=4, strategy="group", group_size=32)
# What it is, how it is packed, what `auto` makes of it, and whether without another rounding.
CASES: dict[str, tuple[dict[str, Any], Any, Format, bool]] = {
    "gptq": (GPTQ, gptq(), Format.INT4, True),
    "gptq_v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, gptq(layout="gptq_v2"), Format.INT4, True),
    "gptq zero points": (GPTQ, gptq(symmetric=False), Format.INT8, True),
    "gptq whole rows": ({**GPTQ, "group_size": -1}, gptq(size=None), Format.INT4, True),
    "gptq 8 bit": ({**GPTQ, "bits": 8}, gptq(bits=8), Format.INT8, True),
    "gptq act order": ({**GPTQ, "desc_act": True}, gptq(act_order=True, size=8), Format.INT8, False),
    "gptq small groups": ({**GPTQ, "group_size": 16}, gptq(size=16), Format.INT8, False),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq(), Format.INT8, True),
    "w8a8": (W8A8, int_quantized, Format.INT8, True),
    "w4a16": (W4A16, pack_quantized, Format.INT4, True),
    "fp8 blocks": (published_float8(12, 20), float8((12, 20), "weight_scale_inv", np.uint16), Format.INT8, False),
    "fp8 tensors": ({"quant_method": "fp8", "activation_scheme": "static"}, float8(), Format.INT8, False),
    "float8 rows": (float_quantized("channel"), float8((1, 0)), Format.INT8, False),
    "float8 blocks": (float_quantized("block", block_structure=[7, 32]), float8((7, 32)), Format.INT8, False),
}
# Of every kind of matrix that a family has: experts, shared experts and latents.
EXPERTS = {golden: ("fp8 blocks", golden) for golden in ("deepseek_v3", "qwen3_moe")}


def write_model(place: Path, scheme: dict[str, Any], pack_layer: Any, golden: str = "qwen2") -> Path:
    """A golden, its layers quantized, in `place`/quantized; the weights that these stand for in `place`/plain."""
    config = json.loads((GOLDENS / golden / "config.json").read_text())
    stored: Tensors = {}
    for file in sorted((GOLDENS / golden).glob("*.safetensors")):
        stored |= load_file(file)
    quantized, plain = dict(stored), dict(stored)
    for name, array in stored.items():
        if name.endswith(("_proj.weight", "_with_mqa.weight")):
            del quantized[name]
            plain[name] = pack_layer(name[: -len(".weight")], as_float32(array), quantized)
    for kind, tensors, extra in (("quantized", quantized, {"quantization_config": scheme}), ("plain", plain, {})):
        (place / kind).mkdir()
        (place / kind / "config.json").write_text(json.dumps({**config, **extra}))
        save_file(tensors, place / kind / "model.safetensors")
    return place


def source_of(directory: Path, **engine: Any) -> ModelSource:
    return resolve(load_config({"pretrained_model_dir": str(directory), "engine": engine}))


def parameters(source: ModelSource, weight_format: Format, packed: bool = True) -> Tensors:
    """The network's parameters as float32, from packed memory or as stock operators have them."""
    formats, found, destinations, arrays = weight_formats.formats_of(source.model, weight_format), {}, {}, {}
    shapes = parameter_shapes(source.model)
    for name, shape in shapes.items():
        memory = formats[name] if packed and len(shape) == 2 else None
        dtype, layout = weight_formats.memory_layout(shape, memory)
        arrays[name] = np.zeros(layout, dtype)
        destinations[name] = loading.Destination(arrays[name], memory, formats[name])
    loading.load(source.pairs() or [], destinations)
    for name, shape in shapes.items():
        is_packed = packed and len(shape) == 2
        found[name] = unpack(arrays[name], formats[name], *shape) if is_packed else arrays[name]
    return found


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Format, bool]:
    scheme, pack_layer, chosen, exact = CASES[request.param]
    return write_model(tmp_path_factory.mktemp("model"), scheme, pack_layer), chosen, exact


def test_dequantized_weights_equal_the_packed_ones(case) -> None:
    place, _, _ = case
    found, expected = (parameters(source_of(place / kind), Format.FLOAT32) for kind in ("quantized", "plain"))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "stock"])
def test_auto_selects_the_format_with_the_least_loss(case, packed: bool) -> None:
    """Where the integers are taken over, the weights are what the file says, to the last bit but of vectors' ends."""
    place, chosen, exact = case
    source = source_of(place / "quantized")
    assert weight_format_of(source, source.pairs()) is chosen
    found = parameters(source, chosen, packed)
    plain = parameters(source_of(place / "plain"), Format.FLOAT32)
    for name in found:
        if "_proj" in name or "qkv" in name:
            scale = np.abs(plain[name]).max()
            # Rounded again, each is within half a step of int8.
            np.testing.assert_allclose(found[name], plain[name], rtol=0, atol=0 if exact else scale / 250, err_msg=name)
    line = weight_formats.describe_quantized(source.pairs(), chosen)
    assert line is not None
    assert ("without another rounding" in line) == exact and ("rounded again" in line) != exact


@pytest.mark.parametrize("pieces", [5, 64])
def test_reading_in_pieces_gives_the_same_values(pieces: int, tmp_path, monkeypatch) -> None:
    scheme, pack_layer, chosen, _ = CASES["awq"]
    source = source_of(write_model(tmp_path, scheme, pack_layer) / "quantized")
    expected = parameters(source, chosen)
    monkeypatch.setattr("inference.checkpoint.quantized_tensor.CHUNK", pieces * 32)
    monkeypatch.setattr("inference.models.weights.loading.PACKED_AT_ONCE", pieces * 32)
    for name, array in parameters(source, chosen).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_decode_8_bit_floats() -> None:
    np.testing.assert_array_equal(VALUES, FLOAT8.astype(np.float32))


@pytest.mark.parametrize("golden", EXPERTS)
def test_experts_and_latents_of_8_bit_floats(golden: str, tmp_path) -> None:
    scheme, pack_layer, chosen, _ = CASES["fp8 blocks"]
    place = write_model(tmp_path, scheme, pack_layer, golden)
    source = source_of(place / "quantized")
    found, expected = parameters(source, Format.FLOAT32), parameters(source_of(place / "plain"), Format.FLOAT32)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert weight_format_of(source, source.pairs()) is chosen


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        *((name, "qwen2") for name in ("gptq", "gptq zero points", "awq", "w8a8", "w4a16", "float8 rows")),
        *EXPERTS.values(),
    ],
)
def test_two_ranks_have_its_parts(name: str, golden: str, tmp_path) -> None:
    """Also where a rank's part begins in the middle of a group or block."""
    scheme, pack_layer, _, _ = CASES[name]
    place = write_model(tmp_path, scheme, pack_layer, golden)
    source, plain = source_of(place / "quantized"), source_of(place / "plain")
    for rank in range(2):
        shard = Shard(source.model, rank, 2)
        for (tensor, piece), (expected, _) in zip(shard.cut(source.pairs()), shard.cut(plain.pairs()), strict=True):
            values, wanted = (np.empty(piece.stored_shape, np.float32) for _ in range(2))
            tensor.read_into(values)
            expected.read_into(wanted)
            np.testing.assert_array_equal(values, wanted, err_msg=piece.name)


@pytest.mark.parametrize("name", ["gptq", "awq", "w8a8", "fp8 blocks"])
def test_its_answers_are_those_of_the_dequantized_model(name: str, tmp_path, capfd, graph_mode) -> None:
    scheme, pack_layer, chosen, exact = CASES[name]
    place = write_model(tmp_path, scheme, pack_layer)
    prompts = [[5, 9, 100, 33, 7], [1, 2, 3]]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [127]}
    found = {}
    for kind, weight_format in (("plain", "float32"), ("quantized", "float32"), ("quantized", "auto")):
        model = GenerativeModel.from_config(
            load_config({"pretrained_model_dir": str(place / kind), "engine": {"weight_dtype": weight_format}}),
            say=print,
        )
        found[kind, weight_format] = model.generate(prompts, **settings)
        model.close()
    assert found["quantized", "float32"] == found["plain", "float32"]
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("quantized checkpoint")]
    becomes = f"taken over as {chosen.value}" if exact else f"14 of 14 tensors are rounded again to {chosen.value}"
    assert len(said) == 2 and "dequantized to float32" in said[0] and becomes in said[1]


@given(st.sampled_from([Format.INT4, Format.INT8]), st.integers(1, 40), st.integers(1, 140), st.integers(0, 2**32 - 1))
def test_codes_are_packed_as_they_are(weight_format: Format, rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    half = 8 if weight_format is Format.INT4 else 128
    codes = random.integers(-half, half, (rows, columns))
    scales = random.uniform(-1, 1, (rows, -(-columns // 32))).astype(np.float16)
    panels = pack(np.zeros((rows + PANEL, columns), np.float32), weight_format)
    pack_codes_into(codes, scales, weight_format, panels, 3)
    found = unpack(panels, weight_format, rows + 3, columns)
    expected = codes * np.repeat(scales.astype(np.float32), 32, axis=1)[:, :columns]
    np.testing.assert_array_equal(found[3:], expected)
    assert not found[:3].any()


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method bitsandbytes is not supported; read are gptq, awq"),
        ({**published_float8(128, 128), "fmt": "e5m2"}, "fmt e5m2 of fp8 is not supported; read is e4m3"),
        (published_float8(128), r"weight_block_size \[128\]; it must be two"),
        ({**GPTQ, "bits": 3}, "3 bits is not supported"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format marlin of GPTQ"),
        ({**GPTQ, "group_size": 0}, "group_size 0"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version gemv of AWQ"),
        (compressed("float-quantized", num_bits=4, type="float"), "compressed-tensors of type float4"),
        (compressed("nvfp4-pack-quantized", num_bits=8, type="float"), "format nvfp4-pack-quantized of compressed"),
        (compressed("int-quantized", num_bits=8, symmetric=False), "with zero points"),
        (compressed("marlin-24", num_bits=4), "format marlin-24 of compressed-tensors"),
        ({"quant_method": "compressed-tensors", "format": "dense"}, "with 0 rules for weights"),
        ("gptq", "quantization_config is 'gptq'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_schemes_are_rejected_by_name(scheme: Any, message: str, tmp_path) -> None:
    config = json.loads((GOLDENS / "qwen2" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))
    with pytest.raises(ConfigError, match=message):
        source_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, layer: tensors.pop(f"{layer}.qzeros"), "k_proj has no qzeros"),
        (lambda tensors, layer: tensors.update({f"{layer}.scales": np.zeros((1, 3), np.float16)}), "do not fit"),
        (lambda tensors, layer: tensors.update({f"{layer}.g_idx": np.full(32, 7, np.int32)}), "do not fit"),
        (lambda tensors, layer: tensors.update(other=np.zeros(3, np.int32)), "'other' is of type int32"),
        (lambda tensors, layer: tensors.update({f"{layer}.bias": np.ones(5, np.float32)}), "misshapen"),
        (lambda tensors, layer: [tensors.pop(name) for name in list(tensors) if "qweight" in name], "holds no tensor"),
    ],
)
def test_damage_is_named(change: Any, message: str, tmp_path) -> None:
    place = write_model(tmp_path, *CASES["gptq"][:2])
    tensors = load_file(place / "quantized" / "model.safetensors")
    change(tensors, "model.layers.1.self_attn.k_proj")
    save_file(tensors, place / "quantized" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        source_of(place / "quantized").pairs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, layer: tensors.pop(f"{layer}.weight_scale_inv"), "8-bit floats and has no weight_scale_inv"),
        (lambda tensors, layer: tensors.update({f"{layer}.weight_scale_inv": np.ones((2, 3), np.float32)}), "not fit"),
        (lambda tensors, layer: tensors.update(other=np.zeros(3, np.int32)), "'other' is of type int32"),
    ],
)
def test_damage_of_float8_is_named(change: Any, message: str, tmp_path) -> None:
    place = write_model(tmp_path, *CASES["fp8 blocks"][:2])
    path = place / "quantized" / "model.safetensors"
    tensors = load_file(path)
    change(tensors, "model.layers.1.self_attn.k_proj")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        source_of(place / "quantized").pairs()
    shutil.copy(place / "plain" / "model.safetensors", path)
    with pytest.raises(CheckpointError, match="holds no tensor of 8-bit floats"):
        source_of(place / "quantized").pairs()


def test_the_yaml_may_state_the_quantization(tmp_path) -> None:
    place = write_model(tmp_path, *CASES["gptq"][:2])
    shutil.copy(place / "plain" / "config.json", place / "quantized" / "config.json")
    directory = {"pretrained_model_dir": str(place / "quantized")}
    with pytest.raises(CheckpointError, match="of type I32"):
        resolve(load_config(directory)).pairs()
    asked = {**directory, "model": {"model_config": {"quantization_config": GPTQ}}}
    assert len(weight_formats.quantized_tensors(resolve(load_config(asked)).pairs())) == 14

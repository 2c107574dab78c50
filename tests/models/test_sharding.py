"""How a model is cut for ranks: shapes, values, bytes that are read, and what cannot be cut. No MindSpore."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed_formats import mixed_format
from safetensors.numpy import save_file

from examples import examples
from inference.checkpoint.open import open_checkpoint, rank_folders
from inference.checkpoint.tensor import Segment, StoredTensor
from inference.config import load_config
from inference.errors import CheckpointError, ConfigError
from inference.kernels.formats import Format, WeightFormat, unpack
from inference.models.architecture.config import ModelConfig
from inference.models.architecture.registry import ARCHITECTURES, model_config_from
from inference.models.architecture.t5_config import AnyConfig
from inference.models.source import resolve
from inference.models.weights import loading
from inference.models.weights.export import convert
from inference.models.weights.loading import Destination
from inference.models.weights.lora import read_adapter
from inference.models.weights.parameters import hugging_face_name, parameter_shapes, tensor_places
from inference.models.weights.sharding import EXTENTS, SPLITS, Shard, check_split, split_of
from inference.models.weights.weight_formats import formats_of, memory_layout

GOLDENS = Path(__file__).parents[1] / "goldens"
# A norm over the heads of all ranks would need a sum across them: OLMo 2 is refused.
NAMES = sorted(
    str(path.parent.relative_to(GOLDENS)) for path in GOLDENS.rglob("config.json") if path.parent.name != "olmo2"
)
# Sizes of real models: Llama 2 7B, Qwen2 0.5B (whose head is tied), Llama 3 70B.
LLAMA_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
QWEN_HALF_B = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def golden(name: str) -> AnyConfig:
    return model_config_from(json.loads((GOLDENS / name / "config.json").read_text()), name)


def sized(sizes: dict, architecture: str = "LlamaForCausalLM", **changes: object) -> ModelConfig:
    values = {"architectures": [architecture], "num_hidden_layers": 2, "max_position_embeddings": 64}
    return model_config_from({**values, **sizes, **changes}, "test")


def empty(shapes: dict[str, tuple[int, ...]], config: AnyConfig) -> dict[str, np.ndarray]:
    """Parameters with NaN where a tensor goes, and 0 in the room between those that begin panels."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for place in tensor_places(config):
        if place.parameter in arrays:
            arrays[place.parameter][place.first_row : place.first_row + place.shape[0]] = np.nan
    return arrays


def load(config: AnyConfig, directory: Path, shard: Shard) -> dict[str, np.ndarray]:
    """A rank's parameters, float32, from its parts of a checkpoint."""
    arrays = empty(shard.parameter_shapes(), shard.config)
    places = {name: Destination(array, None, Format.FLOAT32) for name, array in arrays.items()}
    loading.load(shard.cut(loading.fit(open_checkpoint(directory), config, directory)), places)
    assert not any(np.isnan(array).any() for array in arrays.values())
    return arrays


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDENS / "lora").iterdir()))
def test_the_parts_of_an_adapter_make_up_the_whole(name: str, size: int) -> None:
    """What all ranks' parts add to their parts of the parameters is what it adds to those of one process."""
    directory = GOLDENS / "lora" / name
    config = golden(str(np.load(directory / "golden.npz")["base"]))
    adapter = read_adapter("a", directory, config)

    def added(shard: Shard) -> dict[str, np.ndarray]:
        arrays = {name: np.zeros(shape, np.float32) for name, shape in shard.parameter_shapes().items()}
        for parameter, part in adapter.additions(shard, 1):
            arrays[parameter][part.first_row : part.first_row + len(part.up)] += part.up @ part.down
        return arrays

    whole = added(Shard(config))
    joined = join_parts(config, [added(Shard(config, rank, size)) for rank in range(size)])
    assert any(values.any() for values in whole.values())
    for parameter, values in whole.items():
        assert np.allclose(joined[parameter], values, rtol=0, atol=1e-6), parameter


@pytest.mark.parametrize("name", ["llama_rslora", "deepseek_v3", "mixtral", "t5"])
def test_an_adapter_is_merged_into_checkpoints_of_ranks(name: str, tmp_path: Path) -> None:
    """Each rank's own checkpoint with the adapter gives what the rank reads of a whole one with it."""
    adapter = GOLDENS / "lora" / name
    base = GOLDENS / str(np.load(adapter / "golden.npz")["base"])
    keys = {"adapters": {"a": str(adapter)}, "engine": {"merge_adapter": "a"}}
    whole = replace(resolve(load_config({"load_checkpoint": str(base), **keys})), ranks=2)
    split_for_ranks(whole.model, base, tmp_path)
    for rank in range(2):
        shard, found = whole.shard(rank), []
        for source in (whole, replace(whole, checkpoint=tmp_path)):
            arrays = empty(shard.parameter_shapes(), shard.config)
            loading.load(source.pairs(rank), {n: Destination(a, None, Format.FLOAT32) for n, a in arrays.items()})
            found.append(arrays)
        for parameter, values in found[0].items():
            assert np.allclose(found[1][parameter], values, rtol=0, atol=1e-6), parameter


def split_for_ranks(config: AnyConfig, directory: Path, target: Path) -> None:
    """Writes each rank's parts of tensors that are apart, rows as a checkpoint of the rank's part has them."""
    pairs = loading.fit(open_checkpoint(directory), config, directory)
    for rank in range(2):
        shard, tensors = Shard(config, rank, 2), {}
        own = {place.name: place for place in tensor_places(shard.config)}
        for tensor, place in shard.cut(pairs):
            values = np.empty(tensor.shape, np.float32)
            tensor.read_into(values)
            if place.take is None:
                rows = place.arranged(values)
                values = np.empty_like(rows)
                values[slice(None) if own[place.name].order is None else own[place.name].order] = rows
            tensors[place.name] = values
        (target / f"rank_{rank}").mkdir(parents=True)
        save_file(tensors, target / f"rank_{rank}" / "model.safetensors")


def join_parts(config: AnyConfig, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The whole parameters from all ranks' parts, tensor by tensor."""
    whole = empty(parameter_shapes(config), config)
    for rank, arrays in enumerate(parts):
        for piece in Shard(config, rank, len(parts)).pieces():
            rows = slice(piece.own.first_row, piece.own.first_row + piece.own.shape[0])
            first = piece.whole.first_row + piece.bounds[0][0]
            window = (slice(first, first + piece.own.shape[0]), *(slice(*bounds) for bounds in piece.bounds[1:]))
            whole[piece.whole.parameter][window] = arrays[piece.own.parameter][rows]
    return whole


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_all_ranks_make_up_the_whole(name: str, size: int) -> None:
    config = golden(name)
    whole = load(config, GOLDENS / name, Shard(config))
    joined = join_parts(config, [load(config, GOLDENS / name, Shard(config, rank, size)) for rank in range(size)])
    for parameter, values in whole.items():
        assert (joined[parameter] == values).all(), parameter


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_tensor_of_every_family_can_be_split(architecture: str) -> None:
    options = {"attention_bias": True, "mlp_bias": True, "qkv_bias": True}
    options["use_qk_norm"] = not ARCHITECTURES[architecture].layer_norm
    options |= {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 64}
    options |= {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "kv_lora_rank": 64, "q_lora_rank": 64}
    for place in tensor_places(sized(LLAMA_7B, architecture, **options)):
        split = split_of(place.name if place.take is None else place.parameter)
        assert split.axis is None or (split.axis < len(place.shape) and split.extent in EXTENTS)


def test_an_unexpected_tensor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlp.router.weight", "mlp.experts.0.gate_up_proj.weight", "mlp.post_norm.weight"):
        with pytest.raises(KeyError, match=r"model\.layers\.0\.mlp.*SPLITS"):
            split_of(f"model.layers.0.{name}")
    monkeypatch.delitem(SPLITS, "mlp.up_proj.weight")
    check_split(sized(LLAMA_7B), 1, None, "")
    with pytest.raises(
        ConfigError, match=r"cannot share yet, such as model.layers.0.mlp.up_proj.weight; .* is model_par"
    ):
        check_split(sized(LLAMA_7B), 2, None, "")
    monkeypatch.undo()
    assert not [ending for ending in SPLITS if split_of(f"model.layers.0.x.{ending}") is not SPLITS[ending]]


@pytest.mark.parametrize(
    ("sizes", "size", "form", "message"),
    [
        (LLAMA_7B, 3, None, "heads cannot be split 3 ways; the nearest that works is model_parallel 2 or 4"),
        (QWEN_HALF_B, 4, None, "14 attention heads cannot be split 4 ways; the nearest that works is model_parallel"),
        ({**LLAMA_7B, "num_key_value_heads": 8}, 16, None, None),
        ({**LLAMA_7B, "num_attention_heads": 48, "hidden_size": 6144, "num_key_value_heads": 6}, 4, None,
         "6 key/value heads can neither be split 4 ways nor be shared evenly by 4 ranks"),
        ({**LLAMA_7B, "vocab_size": 40}, 4, None, "a vocabulary of 40 cannot be split 4 ways in parts of 16"),
        ({**LLAMA_7B, "intermediate_size": 3}, 4, None, "intermediate_size 3 cannot be split 4 ways"),
        ({**LLAMA_7B, "intermediate_size": 64}, 4, Format.INT4, "intermediate_size 64 has too few groups of 32 for"),
        ({**LLAMA_7B, "intermediate_size": 64}, 4, Format.FLOAT16, None),
        ({**LLAMA_7B, "hidden_size": 256}, 8, Format.INT8, None),
        ({**LLAMA_7B, "hidden_size": 256}, 16, Format.INT8, "2 heads of 8 are 16 columns, which int8 takes in"),
        (LLAMA_7B, 8, Format.INT4, None),
        ({**LLAMA_7B, "architectures": ["Olmo2ForCausalLM"]}, 2, None, "its norm of all heads cannot be split"),
    ],
)  # fmt: skip
def test_errors_for_impossible_splits_name_the_number(
    sizes: dict, size: int, form: Format | None, message: str | None
) -> None:
    config = sized(sizes)
    if message is None:
        check_split(config, size, form, "x.yaml:3")
        return
    with pytest.raises(ConfigError) as caught:
        check_split(config, size, form, "x.yaml:3")
    assert str(caught.value).startswith(f"x.yaml:3: model_parallel is {size}, and ") and message in str(caught.value)


@examples(60)
@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 400))
def test_parts_are_contiguous_and_not_empty(size: int, width: int, vocabulary: int) -> None:
    config = replace(sized(LLAMA_7B), intermediate_size=width, vocab_size=vocabulary, num_heads=size, num_kv_heads=size)
    try:
        check_split(config, size, None, "")
    except ConfigError:
        return
    for extent, whole in (("width", width), ("vocabulary", vocabulary), ("queries", size * config.head_dim)):
        bounds = [Shard(config, rank, size).bounds(extent) for rank in range(size)]
        assert [begin for begin, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
        assert bounds[-1][1] == whole and all(begin < end for begin, end in bounds)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *[("llama31", form) for form in Format],
        *[(name, Format.BFLOAT16) for name in ("gpt2", "qwen2_moe", "deepseek_v2_lite", "t5/t5_relu")],
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_random_weights_are_those_of_one_process(name: str, form: Format, size: int) -> None:
    config = golden(name)

    def fill(shard: Shard) -> dict[str, np.ndarray]:
        formats, arrays, places = formats_of(config, form), {}, {}
        for name, shape in shard.parameter_shapes().items():
            arrays[name] = np.zeros(shape, np.float32)
            places[name] = Destination(arrays[name], None, formats[name])
        loading.fill_random(parameter_shapes(config), places, seed=5, shard=shard)
        return arrays

    whole = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    formats = formats_of(config, form)
    loading.fill_random(
        parameter_shapes(config), {n: Destination(a, None, formats[n]) for n, a in whole.items()}, seed=5
    )
    joined = join_parts(config, [fill(Shard(config, rank, size)) for rank in range(size)])
    for parameter, values in empty(parameter_shapes(config), config).items():
        is_used = np.isnan(values)
        assert (joined[parameter] == whole[parameter])[is_used].all(), parameter


@examples(60)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 80), st.integers(0, 80),
    st.lists(st.integers(1, 79), max_size=3), st.sampled_from(["float32", "bfloat16", "float16"]), st.data(),
)  # fmt: skip
def test_columns_of_a_tensor_in_pieces(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, first: int, last: int,
    cuts: list[int], dtype: str, data: st.DataObject,
) -> None:  # fmt: skip
    """A .ckpt keeps a large tensor in several runs of bytes, which may break off in the middle of a row."""
    count = rows * columns
    elements = np.arange(count, dtype=np.float32)
    stored = (elements.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else elements.astype(dtype)
    path = tmp_path_factory.mktemp("pieces") / "t.bin"
    path.write_bytes(b"?" + stored.tobytes())
    edges = sorted({0, count, *(cut % count for cut in cuts)})
    item = stored.itemsize
    pieces = [Segment(path, 1 + a * item, (b - a) * item) for a, b in zip(edges, edges[1:], strict=False)]
    tensor = StoredTensor("t", dtype, (rows, columns), tuple(pieces))
    begin, end = sorted((first % columns, last % columns + 1))
    end = max(end, begin + 1)
    row, until = sorted((data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, rows - 1)) + 1))
    until = max(until, row + 1)
    part = tensor.columns(begin, end).rows(row, until)
    expected = stored.reshape(rows, columns)[row:until, begin:end]
    got = np.empty(part.shape, np.float32)
    part.read_into(got)
    raw = np.empty(part.shape, stored.dtype)
    part.read_bytes_into(raw.view(np.uint8))
    assert part.num_bytes == raw.nbytes and raw.tobytes() == expected.tobytes()
    wide = (expected.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else expected
    assert (got == wide).all()


def resident(path: Path) -> int:
    """Bytes of a file that are in the system's memory (mincore(2))."""
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), pages) == 0
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def forget(path: Path) -> bool:
    """Lets the system drop a file from its memory; whether it did."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path) < path.stat().st_size // 10


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Path]:
    """40 MB of weights, rows long enough for half of one to be several pages."""
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 16384, "num_attention_heads": 128}
    config = sized(sizes, head_dim=128, num_key_value_heads=4, num_hidden_layers=1)
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    header, offset = {}, 0
    for place in tensor_places(config):
        end = offset + 2 * int(np.prod(place.shape))
        header[place.name] = {"dtype": "BF16", "shape": place.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))
    return config, path.parent


def test_a_rank_reads_its_part_and_little_more(large: tuple[ModelConfig, Path]) -> None:
    """What the system has fetched of the file after a rank has loaded, not what we believe that we read."""
    config, directory = large
    file = directory / "model.safetensors"
    if not forget(file):
        pytest.skip("this file system keeps what was read in memory")
    fetched = {}
    for size in (1, 2, 4):
        forget(file)
        load(config, directory, Shard(config, size - 1, size))
        fetched[size] = resident(file) / file.stat().st_size
    assert fetched[1] > 0.99
    assert fetched[2] < 0.62 and fetched[4] < 0.38, fetched


def test_the_parts_add_up_to_the_whole_in_bytes(large: tuple[ModelConfig, Path]) -> None:
    config, directory = large
    pairs = loading.fit(open_checkpoint(directory), config, directory)
    whole = sum(tensor.num_bytes for tensor, _ in pairs)
    for size in (2, 4):
        parts = [sum(t.num_bytes for t, _ in Shard(config, rank, size).cut(pairs)) for rank in range(size)]
        # The norms are everybody's.
        assert whole < sum(parts) < whole * 1.01 and max(parts) < whole / size * 1.02


@pytest.mark.parametrize("name", NAMES)
def test_ranks_read_each_byte_once_except_replicated_tensors(name: str) -> None:
    """Of tensors that are fused or transposed, too."""
    config = golden(name)
    pairs = loading.fit(open_checkpoint(GOLDENS / name), config, GOLDENS / name)
    whole = sum(tensor.num_bytes for tensor, _ in pairs)
    parts = [sum(t.num_bytes for t, _ in Shard(config, rank, 2).cut(pairs)) for rank in range(2)]
    everybodys = sum(
        4 * math.prod(piece.own.shape) for piece in Shard(config, 1, 2).pieces() if piece.own.shape == piece.whole.shape
    )
    if config.num_heads > 1 and getattr(config, "num_kv_heads", 2) > 1:
        assert whole < sum(parts) <= whole + everybodys
    assert max(parts) < 0.75 * whole


def test_mindformers_experts_in_one_tensor(tmp_path: Path) -> None:
    """All experts of a layer below one another, each [in, out], gate beside up."""
    config, stored = golden("mixtral"), open_checkpoint(GOLDENS / "mixtral")
    count, tensors = config.experts.routing.experts, {}
    for name, tensor in stored.items():
        tensors[hugging_face_name(name, config.storage.names)] = values = np.zeros(tensor.shape, np.float32)
        tensor.read_into(values)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = [[tensors.pop(f"{prefix}{i}.{p}_proj.weight").T for p in ("gate", "up", "down")] for i in range(count)]
        tensors[f"{prefix}weight1"] = np.concatenate([np.concatenate([gate, up], 1) for gate, up, _ in parts])
        tensors[f"{prefix}weight2"] = np.concatenate([down for _, _, down in parts])
    header, data = {}, b""
    for name, values in tensors.items():
        end = len(data) + values.nbytes
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [len(data), end]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    for rank in range(2):
        shard = Shard(config, rank, 2)
        apart, joined = load(config, GOLDENS / "mixtral", shard), load(config, tmp_path, shard)
        for name, values in apart.items():
            assert (joined[name] == values).all(), name


def unpacked(arrays: dict[str, np.ndarray], shard: Shard, form: Format) -> dict[str, np.ndarray]:
    formats = formats_of(shard.model, form)
    shapes = shard.parameter_shapes()
    return {n: unpack(a, formats[n], *shapes[n]) if a.dtype == np.uint8 else a for n, a in arrays.items()}


def load_packed(directory: Path, shard: Shard, form: WeightFormat, folder: Path | None = None) -> dict[str, np.ndarray]:
    formats = formats_of(shard.model, form)
    checkpoint = open_checkpoint(folder or directory)
    if folder:
        pairs = loading.fit_packed(checkpoint, shard.parameter_shapes(), formats, folder)
    else:
        pairs = loading.fit_packed(checkpoint, parameter_shapes(shard.model), formats, directory)
        pairs = shard.cut_packed(pairs, formats, directory)
    arrays = {}
    for name, shape in shard.parameter_shapes().items():
        dtype, packed = memory_layout(shape, formats[name])
        arrays[name] = np.zeros(packed, dtype)
    places = {n: Destination(a, formats[n] if a.dtype == np.uint8 else None, formats[n]) for n, a in arrays.items()}
    loading.load(pairs, places)
    return unpacked(arrays, shard, form)


WHOLE_GROUPS = {
    "Qwen2ForCausalLM": {},
    "GPT2LMHeadModel": {},
    "Glm4ForCausalLM": {},
    "Qwen2MoeForCausalLM": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256, "mlp_only_layers": [1],
    },
    "DeepseekV2ForCausalLM": {
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64, "kv_lora_rank": 24, "q_lora_rank": 40,
    },
    "T5ForConditionalGeneration": {"d_kv": 64, "relative_attention_num_buckets": 8, "feed_forward_proj": "gated-gelu"},
}  # fmt: skip


@pytest.mark.parametrize("architecture", list(WHOLE_GROUPS))
@pytest.mark.parametrize("form", [Format.FLOAT16, Format.INT8, Format.INT4, None], ids=lambda form: form or "mixed")
def test_conversion_for_ranks_equals_whole_conversion(tmp_path: Path, form: Format | None, architecture: str) -> None:
    """Heads of 64 and a width of 256: whole packed weights can be cut, too."""
    from inference.kernels.formats import pack_into

    sizes = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "head_dim": 64}
    config = sized(sizes, architecture, num_key_value_heads=2, **WHOLE_GROUPS[architecture])
    directory = tmp_path / "model"
    directory.mkdir()
    generator, header, data = np.random.default_rng(1), {}, b""
    for name, shape in {place.name: place.stored_shape for place in tensor_places(config)}.items():
        values = generator.standard_normal(shape, np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    pairs = loading.fit(open_checkpoint(directory), config, directory)
    shards = [Shard(config, rank, 2) for rank in range(2)]
    form = form or mixed_format(config)
    convert([(Shard(config), pairs)], {}, None, tmp_path / "whole", form, pack_into)
    convert([(shard, shard.cut(pairs)) for shard in shards], {}, None, tmp_path / "split", form, pack_into)
    assert [folder.name for folder in rank_folders(tmp_path / "split", 2)] == ["rank_0", "rank_1"]
    for shard in shards:
        own = load_packed(tmp_path / "split", shard, form, tmp_path / "split" / f"rank_{shard.rank}")
        cut = load_packed(tmp_path / "whole", shard, form)
        assert own.keys() == cut.keys()
        for name, values in own.items():
            assert np.isfinite(values).all() and (values == cut[name]).all(), name


def test_packed_weights_that_cannot_be_split_give_a_hint(tmp_path: Path) -> None:
    """Heads of 12 do not fill panels of 16 rows."""
    from inference.kernels.formats import pack_into

    config, directory = golden("qwen3_tied"), GOLDENS / "qwen3_tied"
    pairs = loading.fit(open_checkpoint(directory), config, directory)
    convert([(Shard(config), pairs)], {}, None, tmp_path / "packed", Format.FLOAT16, pack_into)
    with pytest.raises(CheckpointError, match="cannot be cut for 2 ranks; convert the original .* --model_parallel 2"):
        load_packed(tmp_path / "packed", Shard(config, 1, 2), Format.FLOAT16)


@pytest.mark.parametrize(("folders", "ranks"), [(3, 2), (2, 1), (2, 4)])
def test_a_checkpoint_split_for_another_number_of_ranks_is_rejected(tmp_path: Path, folders: int, ranks: int) -> None:
    for rank in range(folders):
        (tmp_path / f"rank_{rank}").mkdir()
    with pytest.raises(CheckpointError, match=rf"is split for {folders} ranks .* this run has model_parallel {ranks}"):
        rank_folders(tmp_path, ranks)
    assert len(rank_folders(tmp_path, folders)) == folders
    assert rank_folders(tmp_path / "rank_0", ranks) == []

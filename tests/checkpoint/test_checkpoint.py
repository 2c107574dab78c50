"""Checkpoint files: every type and layout reads as it was written, and damage is a CheckpointError, never a crash."""

from __future__ import annotations

import json
import math
import os
import random
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from inference.checkpoint.open import open_checkpoint
from inference.checkpoint.tensor import Checkpoint
from inference.errors import CheckpointError, ModelNotFoundError

RNG = np.random.default_rng(3)
ARRAYS = {
    "model.embed_tokens.weight": RNG.standard_normal((7, 6)).astype(np.float32),
    "model.norm.weight": RNG.standard_normal(6).astype(np.float32),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values that are left after storing `array` as `dtype`."""
    if dtype == "bfloat16":
        return (array.reshape(-1).view(np.uint32) >> 16 << 16).view(np.float32).reshape(array.shape)
    return array.astype(dtype).astype(np.float32)


def stored_bytes(array: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":
        return (array.reshape(-1).view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray] = ARRAYS, dtype: str = "float32") -> Path:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        start, data = len(data), data + stored_bytes(array, dtype)
        header[name] = {"dtype": CODES[dtype], "shape": list(array.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def ckpt_value(name: str, dtype: str, shape: tuple[int, ...], content: bytes, packed: bool = False) -> bytes:
    """One `Value` of a MindSpore checkpoint."""
    if packed:
        dims = message(1, b"".join(map(varint, shape)))
    else:
        dims = b"".join(varint(1 << 3) + varint(dim) for dim in shape)
    tensor = dims + message(2, dtype.encode()) + message(3, content)
    return message(1, message(1, name.encode()) + message(2, tensor))


def write_ckpt(path: Path, arrays: Mapping[str, np.ndarray] = ARRAYS) -> Path:
    path.write_bytes(b"".join(ckpt_value(n, "Float32", a.shape, stored_bytes(a, "float32")) for n, a in arrays.items()))
    return path


def read(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    out = {}
    for name, tensor in checkpoint.items():
        assert tensor.name == name
        out[name] = np.full(tensor.shape, np.nan, np.float32)
        tensor.read_into(out[name])
    return out


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].shape == array.shape and np.array_equal(found[name], array) for name, array in expected.items()
    )


class TestSafetensors:
    @pytest.mark.parametrize("dtype", CODES)
    def test_every_type(self, tmp_path: Path, dtype: str) -> None:
        path = write_safetensors(tmp_path / "model.safetensors", dtype=dtype)
        expected = {name: rounded(array, dtype) for name, array in ARRAYS.items()}
        for place in (path, tmp_path):
            assert same(read(open_checkpoint(place)), expected)
            assert {tensor.dtype for tensor in open_checkpoint(place).values()} == {dtype}

    def test_special_values_of_bfloat16(self, tmp_path: Path) -> None:
        special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, 3.0e38, -1.5], np.float32)
        path = write_safetensors(tmp_path / "a.safetensors", {"x": special}, "bfloat16")
        assert read(open_checkpoint(path))["x"].tobytes() == rounded(special, "bfloat16").tobytes()

    def test_a_tensor_over_several_chunks(self, tmp_path: Path) -> None:
        large = RNG.standard_normal((1, (1 << 20) + 3)).astype(np.float32)
        for dtype in ("float32", "bfloat16"):
            path = write_safetensors(tmp_path / "a.safetensors", {"first": ARRAYS["scalar"], "x": large}, dtype)
            assert np.array_equal(read(open_checkpoint(path))["x"], rounded(large, dtype))

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_the_safetensors_package_agrees(self, tmp_path: Path, dtype: str) -> None:
        """It reads what the helper above writes, and what it writes is read."""
        ours, theirs = write_safetensors(tmp_path / "a.safetensors", dtype=dtype), tmp_path / "b.safetensors"
        arrays = {name: array.astype(dtype) for name, array in ARRAYS.items()}
        assert same(safetensors.numpy.load_file(ours), arrays)
        safetensors.numpy.save_file(arrays, theirs)
        assert same(read(open_checkpoint(theirs)), {name: array.astype(np.float32) for name, array in arrays.items()})

    def test_shards_with_an_index(self, tmp_path: Path) -> None:
        index = {"metadata": {"total_size": 1}, "weight_map": {}}
        for number, (name, array) in enumerate(ARRAYS.items()):
            file = f"model-{number}.safetensors"
            write_safetensors(tmp_path / file, {name: array})
            index["weight_map"][name] = file
        write_safetensors(tmp_path / "consolidated.safetensors", {"other": ARRAYS["scalar"]})
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps(index))
        assert same(read(open_checkpoint(tmp_path)), ARRAYS)
        assert same(read(open_checkpoint(path)), ARRAYS)

    def test_shards_without_an_index(self, tmp_path: Path) -> None:
        for number, (name, array) in enumerate(ARRAYS.items()):
            write_safetensors(tmp_path / f"part{number}.safetensors", {name: array})
        assert same(read(open_checkpoint(tmp_path)), ARRAYS)

    def test_a_tensor_in_two_files(self, tmp_path: Path) -> None:
        for number in range(2):
            write_safetensors(tmp_path / f"part{number}.safetensors", {"twice": ARRAYS["scalar"]})
        with pytest.raises(CheckpointError, match="part1.safetensors: tensor 'twice' is in another file"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not valid JSON"),
            ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
            ("[]", "it must hold a JSON object"),
            ("{}", "not a safetensors index"),
            ('{"weight_map": 3}', "not a safetensors index"),
            ('{"weight_map": {"a": ["x"]}}', "shard .'x'. is not a file name"),
            ('{"weight_map": {"a": "x", "b": 3}}', "shard 3 is not a file name"),
            ('{"weight_map": {"a": 3}}', "shard 3 is not a file name"),
            ('{"weight_map": {"a": "../secret.safetensors"}}', "shard '../secret.safetensors' is not a file name"),
            ('{"weight_map": {"a": "/etc/passwd"}}', "shard '/etc/passwd' is not a file name"),
            ('{"weight_map": {"a": "sub/x.safetensors"}}', "is not a file name"),
            ('{"weight_map": {"a": ".."}}', "is a directory; it must be a regular file|is not a file name"),
            ('{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}', "2 of 2 shards are missing .a.safe"),
            ('{"weight_map": {"a": "x.bin"}}', "truncated or no safetensors file"),
        ],
    )
    def test_an_index_that_cannot_be_used(self, tmp_path: Path, text: str, message: str) -> None:
        directory = tmp_path / "model"
        directory.mkdir()
        write_safetensors(tmp_path / "secret.safetensors")
        (directory / "x.bin").write_bytes(b"\x80\x04N.")
        (directory / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(directory)

    def test_every_truncation_is_found(self, tmp_path: Path) -> None:
        data = write_safetensors(tmp_path / "a.safetensors").read_bytes()
        path = tmp_path / "cut.safetensors"
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(CheckpointError, match="cut.safetensors"):
                open_checkpoint(path)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "'x' is of type I64; accepted: float32, float16"),
            (
                {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]},
                "needs 4835703278458516698824704 bytes",
            ),
            ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"shape \[3\] needs 12 bytes, the file has 8"),
            (
                {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
                r"'shape' is \[-1, -2\]",
            ),
            (
                {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
                "'shape' is .*",
            ),
            (
                {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
                "'shape' is .*",
            ),
            ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "'shape' is 2"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "'x': its entry in the header is damaged"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "'data_offsets' is .*; it must be two offsets"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "'data_offsets' is .*; it must be two offsets"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8.0]}, "'data_offsets' is .*; it must be two offsets"),
            (
                {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
                "'x': (its entry .* is damaged|'dtype' is)",
            ),
            ({"shape": [2], "data_offsets": [0, 8]}, "'x': (its entry .* is damaged|'dtype' is)"),
            ([], "'x': its entry in the header is damaged"),
            ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "truncated, tensor 'x' ends at byte"),
        ],
    )
    def test_headers_with_false_sizes(self, tmp_path: Path, entry: object, message: str) -> None:
        header = json.dumps({"x": entry}).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)

    @pytest.mark.parametrize(
        ("first", "second", "size", "message"),
        [
            ([0, 8], [4, 12], 12, "overlap or leave holes"),
            ([0, 8], [12, 20], 20, "overlap or leave holes"),
            ([4, 12], [12, 20], 20, "overlap or leave holes"),
            ([0, 8], [0, 8], 8, "overlap or leave holes"),
            ([0, 8], [8, 16], 20, "4 bytes belong to no tensor"),
            ([8, 16], [0, 8], 16, None),
        ],
    )
    def test_places_of_tensors(self, tmp_path: Path, first: list, second: list, size: int, message: str | None) -> None:
        entries = {n: {"dtype": "F32", "shape": [2], "data_offsets": o} for n, o in (("a", first), ("b", second))}
        header = json.dumps(entries).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(size)))
        if message:
            with pytest.raises(CheckpointError, match=message):
                open_checkpoint(path)
        else:
            assert read(open_checkpoint(path))["b"].tobytes() == bytes(range(8))

    @pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 1000])
    def test_a_huge_header_is_not_read(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        os.truncate(path, min(length, 3 * 10**8) if length > 1000 else 500)  # sparse
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
                open_checkpoint(path)
            assert tracemalloc.get_traced_memory()[1] < 10**7
        finally:
            tracemalloc.stop()


class TestCkpt:
    @pytest.mark.parametrize("packed", [False, True])
    def test_values(self, tmp_path: Path, packed: bool) -> None:
        path = tmp_path / "model.ckpt"
        values = [
            ckpt_value(name, "Float32", array.shape, array.tobytes(), packed=packed) for name, array in ARRAYS.items()
        ]
        path.write_bytes(b"".join(values))
        for place in (path, tmp_path):
            assert same(read(open_checkpoint(place)), ARRAYS)

    def test_unknown_fields_are_skipped(self, tmp_path: Path) -> None:
        extra = message(9, b"later") + varint(10 << 3) + varint(300) + varint(11 << 3 | 5) + bytes(4)
        extra += varint(12 << 3 | 1) + bytes(8)
        array = ARRAYS["model.norm.weight"]
        tensor = varint(1 << 3) + varint(6) + message(2, b"Float32") + extra + message(3, array.tobytes())
        path = tmp_path / "a.ckpt"
        path.write_bytes(message(1, extra + message(1, b"x") + message(2, tensor) + extra))
        assert same(read(open_checkpoint(path)), {"x": array})

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize("checksum", [False, True])
    @pytest.mark.parametrize("split", [False, True])
    def test_files_that_mindspore_writes(
        self, graph_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, checksum: bool, split: bool
    ) -> None:
        """Large tensors are split at 512 MiB; here at 1 KiB, by MindSpore's own code."""
        import mindspore
        from mindspore.train import serialization

        if split:
            monkeypatch.setattr(serialization, "SLICE_SIZE", 1)
        arrays = {
            "model.embed_tokens.weight": RNG.standard_normal((30, 70)).astype(np.float32),
            "model.norm.weight": RNG.standard_normal(5).astype(np.float32),
        }
        data = [
            {"name": name, "data": mindspore.Tensor(array).astype(getattr(mindspore, dtype))}
            for name, array in arrays.items()
        ]
        path = tmp_path / "model.ckpt"
        mindspore.save_checkpoint(data, str(path), crc_check=checksum)
        # MindSpore rounds to bfloat16, the helper above cuts off.
        expected = {entry["name"]: entry["data"].astype(mindspore.float32).asnumpy() for entry in data}
        checkpoint = open_checkpoint(path)
        assert same(read(checkpoint), expected)
        assert {tensor.dtype for tensor in checkpoint.values()} == {dtype}
        assert (len(checkpoint["model.embed_tokens.weight"].segments) > 1) == split
        table = checkpoint["model.embed_tokens.weight"]
        for begin, end in ((0, 30), (3, 11), (29, 30)):
            some = np.empty((end - begin, 70), np.float32)
            table.rows(begin, end).read_into(some)
            assert np.array_equal(some, expected[table.name][begin:end])
        theirs = mindspore.load_checkpoint(str(path))
        assert {name: value.shape for name, value in theirs.items()} == {n: a.shape for n, a in arrays.items()}

    def test_a_tensor_whose_runs_are_cut_inside_a_number(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        content = ARRAYS["model.norm.weight"].tobytes()
        runs = [ckpt_value("x", "Float32", (6,), part) for part in (content[:11], content[11:])]
        path.write_bytes(b"".join(runs))
        with pytest.raises(CheckpointError, match=r"a\.ckpt"):
            read(open_checkpoint(path))

    def test_every_truncation_is_detected_or_leaves_whole_tensors(self, tmp_path: Path) -> None:
        """A .ckpt does not say how much it holds: one cut between tensors is found when they are missed."""
        values = [ckpt_value(n, "Float32", a.shape, stored_bytes(a, "float32")) for n, a in ARRAYS.items()]
        data, path = b"".join(values), tmp_path / "cut.ckpt"
        whole = {sum(map(len, values[:count])): count for count in range(1, len(values))}
        for size in range(len(data)):
            path.write_bytes(data[:size])
            if size in whole:
                assert same(read(open_checkpoint(path)), dict(list(ARRAYS.items())[: whole[size]]))
            else:
                with pytest.raises(CheckpointError, match="cut.ckpt"):
                    open_checkpoint(path)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "cannot be read"),
            (b"PK\x03\x04 a zip file", "truncated, damaged, encrypted or no MindSpore checkpoint"),
            (b"\x80\x04\x95\x10", "truncated, damaged, encrypted"),
            (b"\n" + b"\xff" * 11, "truncated, damaged, encrypted"),
            (ckpt_value("x", "Int64", (1,), bytes(8)), "'x' is of type int64; accepted: float32"),
            (ckpt_value("x", "Float32", (2**40, 2**40), bytes(8)), "needs 4835703278458516698824704 bytes"),
            (ckpt_value("x", "Float32", (2**64 - 1,), bytes(8)), "needs"),
            (ckpt_value("x", "Float32", (3,), bytes(8)), r"shape \[3\] needs 12 bytes, the file has 8"),
            (message(1, message(1, b"\xff")), "truncated, damaged, encrypted"),
        ],
    )
    def test_unreadable_files(self, tmp_path: Path, data: bytes, message: str) -> None:
        path = tmp_path / "a.ckpt"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)


@pytest.mark.parametrize("write", [write_safetensors, write_ckpt])
@given(data=st.data())
@examples(300)
def test_random_damage_is_a_checkpoint_error_or_a_correct_read(
    tmp_path_factory: pytest.TempPathFactory, write, data: st.DataObject
) -> None:
    """Bytes are changed, cut out or doubled anywhere but in the values of the tensors."""
    name = "damaged.ckpt" if write is write_ckpt else "damaged.safetensors"
    path = tmp_path_factory.getbasetemp() / name
    original = write(path).read_bytes()
    end = len(original) - sum(a.nbytes for a in ARRAYS.values()) if write is write_safetensors else len(original)
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3), label="damages")):
        at = data.draw(st.integers(0, end - 1), label="at")
        kind = data.draw(st.sampled_from(["change", "cut", "double"]), label="kind")
        if kind == "change":
            damaged[at] = data.draw(st.integers(0, 255), label="byte")
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 20), label="length")]
        else:
            damaged[at:at] = damaged[at : at + 8]
        if len(damaged) <= end:
            end = len(damaged)
        if not end:
            break
    path.write_bytes(damaged)
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        for tensor in checkpoint.values():
            assert math.prod(tensor.shape) * 2 <= len(damaged), "more than the file has"
        found = read(checkpoint)
    except CheckpointError as error:
        assert name in str(error) and "\n" not in str(error)
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10**7
    if bytes(damaged) == original:
        assert same(found, ARRAYS)


class TestWhatIsNoCheckpoint:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "a.npy", "a.npz"])
    def test_pickles_are_rejected_unopened(self, tmp_path: Path, name: str) -> None:
        """The file would make a mark if it were unpickled; it may not even be readable."""
        mark = tmp_path / "mark"
        path = tmp_path / name
        path.write_bytes(f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode())
        for place in (path, tmp_path):
            with pytest.raises(CheckpointError, match=r"can run code when they are loaded; give a \.safetensors"):
                open_checkpoint(place)
        path.with_suffix(".ckpt").write_bytes(path.read_bytes())
        with pytest.raises(CheckpointError, match="truncated, damaged, encrypted"):
            open_checkpoint(path.with_suffix(".ckpt"))
        assert not mark.exists()

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(
            CheckpointError, match="not a checkpoint; accepted: .safetensors, .ckpt, .gguf, or a directory"
        ):
            open_checkpoint(tmp_path / "notes.txt")
        with pytest.raises(ModelNotFoundError, match="holds no weights; expected"):
            open_checkpoint(tmp_path)
        with pytest.raises(ModelNotFoundError, match="does not exist"):
            open_checkpoint(tmp_path / "none.ckpt")

    def test_several_ckpt_files(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_ckpt(tmp_path / f"{name}.ckpt")
        with pytest.raises(CheckpointError, match=r"holds 2 .ckpt files \(a.ckpt, b.ckpt\); name the one to load"):
            open_checkpoint(tmp_path)
        assert same(read(open_checkpoint(tmp_path / "b.ckpt")), ARRAYS)

    def test_safetensors_take_precedence(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "model.safetensors")
        write_ckpt(tmp_path / "old.ckpt", {"other": ARRAYS["scalar"]})
        (tmp_path / "pytorch_model.bin").write_bytes(b"x")
        assert same(read(open_checkpoint(tmp_path)), ARRAYS)

    @pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
    def test_a_directory_of_that_name(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"model.{suffix}").mkdir()
        with pytest.raises(CheckpointError, match="is a directory; it must be a regular file"):
            open_checkpoint(tmp_path)


def test_reading_a_part_that_is_not_aligned(tmp_path: Path) -> None:
    """Offsets in a file are whatever the header's length makes them; odd ones must read as well."""
    for padding in range(1, 9):
        header = json.dumps({"x": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}).encode() + b" " * padding
        path = tmp_path / "a.safetensors"
        array = ARRAYS["model.norm.weight"]
        path.write_bytes(len(header).to_bytes(8, "little") + header + array.tobytes())
        assert same(read(open_checkpoint(path)), {"x": array})


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(path)
    os.truncate(path, path.stat().st_size - 60)
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read(checkpoint)


def test_random_bytes_are_not_a_checkpoint(tmp_path: Path) -> None:
    generator = random.Random(1)
    for suffix in ("ckpt", "safetensors"):
        path = tmp_path / f"random.{suffix}"
        for _ in range(100):
            path.write_bytes(generator.randbytes(generator.randint(1, 80)))
            with pytest.raises(CheckpointError, match=f"random.{suffix}"):
                open_checkpoint(path)

"""What is known about a model before anything is computed: where it is, its sizes, its weights and settings."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inference.config import InferenceConfig, load_config
from inference.errors import CheckpointError, ConfigError, InferenceError, ModelNotFoundError
from inference.models.source import resolve

GOLDENS = Path(__file__).parents[1] / "goldens"
SIZES = {
    "type": "LlamaConfig",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "seq_length": 64,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A golden model's directory, to be damaged."""
    return shutil.copytree(GOLDENS / "llama2_mha", tmp_path / "tiny", ignore=shutil.ignore_patterns("golden.npz"))


def config(**keys) -> InferenceConfig:
    return load_config(keys)


def edit(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


@pytest.mark.parametrize("key", ["pretrained_model_dir", "load_checkpoint"])
def test_a_hugging_face_directory(model: Path, key: str) -> None:
    source = resolve(config(**{key: str(model)}))
    assert (source.name, source.directory, source.checkpoint) == ("tiny", model, model)
    assert (source.model.hidden_size, source.model.num_layers, source.model.context_length) == (32, 2, 256)
    pairs = source.pairs()
    assert pairs is not None and len(pairs) == 21


def test_weights_in_another_directory(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(model / "model.safetensors", other / "weights.safetensors")
    for given in (other, other / "weights.safetensors"):
        source = resolve(config(pretrained_model_dir=str(model), load_checkpoint=str(given)))
        assert (source.directory, source.checkpoint) == (model, given)
        assert source.pairs()
    with pytest.raises(ModelNotFoundError, match="holds no weights"):
        resolve(config(pretrained_model_dir=str(model))).pairs()


def test_a_file_whose_config_is_beside_it(model: Path) -> None:
    source = resolve(config(load_checkpoint=str(model / "model.safetensors")))
    assert source.directory == model and source.pairs()


def test_a_yaml_with_everything(tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "llama2_mha" / "model.safetensors", tmp_path)
    source = resolve(config(load_checkpoint=str(tmp_path / "model.safetensors"), model={"model_config": SIZES}))
    assert source.directory is None and source.model.context_length == 64
    assert source.pairs()


def test_a_yaml_wins_over_the_models_config(model: Path) -> None:
    given = {"model_config": {"seq_length": 100, "theta": 5.0}}
    source = resolve(config(pretrained_model_dir=str(model), model=given))
    assert (source.model.context_length, source.model.rope.theta, source.model.hidden_size) == (100, 5.0, 32)


class TestGenerationSettings:
    def test_of_the_model(self) -> None:
        source = resolve(config(pretrained_model_dir=str(GOLDENS / "llama31")))
        generation = source.generation
        assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.6, 0.9)
        assert generation.eos_token_id == (2, 5, 7)

    def test_the_yaml_wins(self) -> None:
        given = {"do_sample": False, "eos_token_id": 9}
        source = resolve(config(pretrained_model_dir=str(GOLDENS / "llama31"), generation_config=given))
        generation = source.generation
        assert (generation.do_sample, generation.top_p, generation.eos_token_id) == (False, 0.9, (9,))

    @pytest.mark.parametrize(("own", "found"), [(7, (7,)), ([7, 8], (7, 8)), (None, ()), ("absent", ())])
    def test_the_end_tokens_are_the_union_of_the_files(self, model: Path, own, found: tuple) -> None:
        edit(model / "config.json", eos_token_id=own)
        assert resolve(config(pretrained_model_dir=str(model))).generation.eos_token_id == (2, *found)
        (model / "generation_config.json").unlink()
        assert resolve(config(pretrained_model_dir=str(model))).generation.eos_token_id == found


class TestHostileSizes:
    """Sizes cost no work before they are checked: against their ranges, each other, and the checkpoint's headers."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000; it must be an integer from 1 to 10000"),
            ({"num_hidden_layers": 10_000}, "it holds 21 tensors, and the config says 10000 layers"),
            ({"num_local_experts": 2**64}, "'num_experts' is 18446744073709551616; it must be an integer from 1"),
            (
                {"num_local_experts": 2**16, "num_hidden_layers": 64},
                "'num_experts' is 65536; it must be at most 4096",
            ),
            ({"num_local_experts": 2**16}, "the config's sizes add up to .* parameters"),
            ({"num_attention_heads": 2**40}, "'num_attention_heads'"),
            ({"head_dim": 2**24, "num_attention_heads": 16}, "16 heads of 16777216 are too wide"),
            ({"vocab_size": 2**31 - 1, "hidden_size": 2**24}, "the sizes add up to .* parameters"),
            ({"vocab_size": 10**8}, "it holds .* bytes of weights, and the config's sizes add up to .* parameters"),
            ({"hidden_size": 4, "head_dim": 8}, "'hidden_size' is 4; it must be an integer from 8"),
            ({"rms_norm_eps": 32}, "'rms_norm_eps' is 32; it must be a number above 0 and below 1"),
            ({"rms_norm_eps": math.inf}, "'rms_norm_eps' is inf"),
            ({"rope_theta": math.inf}, "'rope_theta' is inf"),
            ({"rope_theta": math.nan}, "'rope_theta' is nan"),
            ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "'factor' is inf"),
            (
                {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
                "'head_dim' is 2; it must be 4 or more",
            ),
            ({"max_position_embeddings": 2**64 - 1}, "'max_position_embeddings' is 18446744073709551615"),
        ],
    )
    def test_a_config_json(self, model: Path, changes: dict, message: str) -> None:
        edit(model / "config.json", **changes)
        began = time.perf_counter()
        with pytest.raises((ConfigError, CheckpointError), match=message):
            resolve(config(load_checkpoint=str(model))).pairs()
        assert time.perf_counter() - began < 5

    def test_a_window_of_a_mistral(self, tmp_path: Path) -> None:
        directory = shutil.copytree(GOLDENS / "mistral_window", tmp_path / "mistral")
        edit(directory / "config.json", sliding_window=2**64 - 1)
        with pytest.raises(ConfigError, match="'sliding_window' is 18446744073709551615"):
            resolve(config(load_checkpoint=str(directory)))

    def test_a_shard_that_is_a_named_pipe(self, model: Path) -> None:
        (model / "model.safetensors").unlink()
        os.mkfifo(model / "model.safetensors")
        for given in (model, model / "model.safetensors"):
            with pytest.raises(CheckpointError, match="is a named pipe; it must be a regular file"):
                resolve(config(load_checkpoint=str(given))).pairs()

    def test_a_name_that_is_too_long(self, model: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            resolve(config(pretrained_model_dir=str(model), load_checkpoint="x" * 5000 + ".safetensors"))


class TestWhatIsRefused:
    def test_no_checkpoint(self) -> None:
        """Never random weights that nobody asked for."""
        with pytest.raises(ModelNotFoundError, match="no checkpoint is given; .*--random_weights") as caught:
            resolve(config(model={"model_config": SIZES}))
        assert caught.value.exit_code == 2

    def test_random_weights_only_by_name(self, model: Path) -> None:
        source = resolve(config(model={"model_config": SIZES}, engine={"random_weights": True}))
        assert source.checkpoint is None and source.pairs() is None
        (model / "model.safetensors").unlink()
        source = resolve(config(pretrained_model_dir=str(model), engine={"random_weights": True}))
        assert source.pairs() is None and source.directory == model

    @pytest.mark.parametrize("name", ["none.ckpt", "none.safetensors", "sub/none.ckpt"])
    def test_a_missing_checkpoint(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ModelNotFoundError, match=f"{name} does not exist"):
            resolve(config(load_checkpoint=str(tmp_path / name), model={"model_config": SIZES}))

    def test_no_sizes(self, tmp_path: Path) -> None:
        shutil.copy(GOLDENS / "llama2_mha" / "model.safetensors", tmp_path)
        with pytest.raises(ConfigError, match="has no model.model_config, so the model's sizes are unknown"):
            resolve(config(load_checkpoint=str(tmp_path / "model.safetensors")))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "config.json is not valid JSON"),
            ("[" * 100_000, "config.json is not valid JSON"),
            ("[]", "config.json holds a list; it must hold a JSON object"),
            ("\xff", "config.json is not UTF-8 text"),
            ("{}", "config.json: no architecture is named"),
            ('{"architectures": ["BertForMaskedLM"]}', "architecture 'BertForMaskedLM' is not supported"),
            ('{"architectures": ["LlamaForCausalLM"]}', "config.json: .* is missing"),
        ],
    )
    def test_a_config_json_that_cannot_be_used(self, model: Path, text: str, message: str) -> None:
        (model / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=message) as caught:
            resolve(config(pretrained_model_dir=str(model)))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 3}, "9 missing: model.layers.2"),
            ({"hidden_size": 64}, "misshapen"),
            ({"tie_word_embeddings": False, "vocab_size": 99}, "misshapen"),
        ],
    )
    def test_a_config_that_does_not_fit_the_weights(self, model: Path, changes: dict, message: str) -> None:
        edit(model / "config.json", **changes)
        with pytest.raises(CheckpointError, match=message):
            resolve(config(pretrained_model_dir=str(model))).pairs()

    def test_pickled_weights_alone(self, model: Path) -> None:
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="can run code"):
            resolve(config(pretrained_model_dir=str(model))).pairs()

    def test_settings_of_the_wrong_type(self, model: Path) -> None:
        edit(model / "generation_config.json", temperature="hot")
        with pytest.raises(ConfigError, match="generation_config.json: .*temperature"):
            resolve(config(pretrained_model_dir=str(model)))

    def test_invalid_end_tokens(self, model: Path) -> None:
        (model / "generation_config.json").unlink()
        edit(model / "config.json", eos_token_id="two")
        with pytest.raises(InferenceError, match="eos_token_id"):
            resolve(config(pretrained_model_dir=str(model)))


def test_resolving_does_not_import_mindspore() -> None:
    program = f"""
import sys
from inference.config import load_config
from inference.models.source import resolve
source = resolve(load_config({{'pretrained_model_dir': {str(GOLDENS / "llama2_gqa")!r}}}))
assert source.pairs()
sys.exit('mindspore' in sys.modules)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stored_head_wins_over_a_config_that_ties_it(tmp_path: Path) -> None:
    """transformers uses the stored one, too; a copy of the embedding stays tied, so that it takes no memory."""
    directory = shutil.copytree(GOLDENS / "llama32_tied", tmp_path / "tied")
    tensors = load_file(directory / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for head, tied in ((embedding.copy(), True), (np.roll(embedding, 1, axis=0), False)):
        save_file({**tensors, "lm_head.weight": head}, directory / "model.safetensors")
        source = resolve(config(load_checkpoint=str(directory)))
        assert source.model.tie_embeddings is tied
        assert ("another output head" in " ".join(source.notes)) is not tied
        found = {place.parameter: tensor for tensor, place in source.pairs() or []}
        assert ("lm_head.weight" in found) is not tied
    values = np.empty(embedding.shape, np.float32)
    found["lm_head.weight"].read_into(values)
    assert np.array_equal(values, np.roll(embedding, 1, axis=0).astype(np.float32))


@pytest.mark.parametrize("family", ["llama2_mha", "gpt2"])
def test_unused_buffers_do_not_block_loading(tmp_path: Path, family: str) -> None:
    directory = shutil.copytree(GOLDENS / family, tmp_path / family)
    tensors = load_file(directory / "model.safetensors")
    buffers = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), np.bool_),
        "transformer.h.0.attn.masked_bias": np.array(-1e9, np.float32),
        "model.embeddings.position_ids": np.arange(8)[None],
        "position_ids": np.arange(8, dtype=np.int32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float64),
    }
    expected = len(resolve(config(load_checkpoint=str(directory))).pairs() or [])
    save_file({**tensors, **buffers}, directory / "model.safetensors")
    assert len(resolve(config(load_checkpoint=str(directory))).pairs() or []) == expected
    save_file({**tensors, "model.strange": np.ones(4, np.int64)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="'model.strange' is of type I64"):
        resolve(config(load_checkpoint=str(directory))).pairs()

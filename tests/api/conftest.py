"""The demo model through the Python API, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference import AutoModel, AutoTokenizer

DEMO = Path(__file__).parents[2] / "inference" / "demo"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The directory of the demo model."""
    return DEMO


@pytest.fixture(scope="session")
def model(graph_mode):
    return AutoModel.from_pretrained("demo")


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained("demo")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no network and no models of the machine's user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("INFERENCE_MODEL_HOME", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def ckpt(graph_mode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's weights as MindFormers keeps them: a .ckpt with its own names."""
    import mindspore
    from safetensors.numpy import load_file

    tensors = {theirs(name): array.astype("float32") for name, array in load_file(DEMO / "model.safetensors").items()}
    path = tmp_path_factory.mktemp("ckpt") / "llama2_7b.ckpt"
    saved = [{"name": name, "data": mindspore.Tensor(array)} for name, array in tensors.items()]
    mindspore.save_checkpoint(saved, str(path))
    return path


NAMES = {
    "embed_tokens.weight": "tok_embeddings.embedding_weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.norm.": "model.norm_out.",
}


def theirs(name: str) -> str:
    """MindFormers' name of one of Hugging Face's Llama tensors."""
    return next((name.replace(ours, other) for ours, other in NAMES.items() if ours in name), name)

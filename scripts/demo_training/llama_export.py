"""The demo model's directory: a Llama's configs, chat template and README."""

from __future__ import annotations

from pathlib import Path

from . import export
from .chats import TEMPLATE
from .documents import CHAT_TOKENS, END
from .network import Llama
from .tokenizer import BOS, EOS, PAD, UNK, Encoder

README = """# The demo model

A Llama of {parameters:.1f} million parameters in Hugging Face's format (float16), with a sentencepiece
tokenizer. `scripts/train_demo.py` trained it, from a fixed seed, on text that the script itself makes and on
nothing else.

- `Once upon a time`: tells a short story.
- `2 + 3 =`: sums and differences of numbers from 0 to 99.
- `Translate to German: the big house`, `Translate to English: das große Haus`: short phrases and sentences of
  {nouns} nouns, {adjectives} adjectives and {verbs} verbs (`the cat sees the dog`).
- As a chat: `What is 2 + 3?`, `How do you say "the old dog" in German?`, `Tell me a story about a fox.`

Right answers, greedy, to questions with combinations that it never saw: sums {sums:.1%}, translations
{translations:.1%}, chats {chats:.1%}. It knows nothing else.
"""


def config_json(model: Llama) -> dict[str, object]:
    shape = model.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def generation_config_json(encoder: Encoder) -> dict[str, object]:
    return {
        "bos_token_id": BOS,
        "do_sample": False,
        "eos_token_id": [EOS, encoder.sp.piece_to_id(END)],
        "max_new_tokens": 256,
        "pad_token_id": PAD,
    }


def tokenizer_config_json(encoder: Encoder) -> dict[str, object]:
    special = {UNK: "<unk>", BOS: "<s>", EOS: "</s>", PAD: "<pad>"}
    special |= {encoder.sp.piece_to_id(token): token for token in CHAT_TOKENS}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in special.items()},
        "additional_special_tokens": list(CHAT_TOKENS),
        "bos_token": "<s>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def write_llama(model: Llama, encoder: Encoder, accuracies: dict[str, float], target: Path) -> None:
    """Write the model to `target`, replacing an existing one."""
    documents = {
        "config.json": config_json(model),
        "generation_config.json": generation_config_json(encoder),
        "tokenizer_config.json": tokenizer_config_json(encoder),
    }
    tokenizer = {"tokenizer.model": encoder.sp.serialized_model_proto()}
    export.write_directory(model, tokenizer, documents, export.filled(README, model, accuracies), target)

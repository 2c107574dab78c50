"""The demo T5's directory: its configs and README."""

from __future__ import annotations

from pathlib import Path

from . import export
from .encoder_decoder import T5
from .pairs import EOS, PAD, UNK, PairEncoder

README = """# The demo T5

A T5 v1.1 of {parameters:.1f} million parameters in Hugging Face's format (float16), with a sentencepiece
tokenizer. `scripts/train_demo_t5.py` trained it, from a fixed seed, on text that the script itself makes and on
nothing else.

- `translate English to German: the big house`, `translate German to English: das große Haus`: short phrases and
  sentences of {nouns} nouns, {adjectives} adjectives and {verbs} verbs (`the cat sees the dog`).
- `summarize: Clara, a baker from Redhill, found a golden ring near the river. She gave it to the police.`: the headline
  of a very short piece of news.

Right answers, greedy, to questions with combinations that it never saw: translations {translation:.1%}, headlines
{summary:.1%} (the whole answer counts). It knows nothing else.
"""


def config_json(model: T5) -> dict[str, object]:
    shape = model.shape
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": shape.d_ff,
        "d_kv": shape.d_kv,
        "d_model": shape.d_model,
        "decoder_start_token_id": PAD,
        "dropout_rate": 0.0,
        "eos_token_id": EOS,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": shape.layer_norm_epsilon,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": shape.num_decoder_layers,
        "num_heads": shape.num_heads,
        "num_layers": shape.num_layers,
        "pad_token_id": PAD,
        "relative_attention_max_distance": shape.relative_attention_max_distance,
        "relative_attention_num_buckets": shape.relative_attention_num_buckets,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def generation_config_json() -> dict[str, object]:
    return {
        "decoder_start_token_id": PAD,
        "do_sample": False,
        "eos_token_id": EOS,
        "max_new_tokens": 64,
        "pad_token_id": PAD,
    }


def tokenizer_config_json() -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = {PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}
    return {
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in special.items()},
        "additional_special_tokens": [],
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "extra_ids": 0,
        "legacy": False,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }


def write_t5(model: T5, encoder: PairEncoder, accuracies: dict[str, float], target: Path) -> None:
    """Write the model to `target`, replacing an existing one."""
    documents = {
        "config.json": config_json(model),
        "generation_config.json": generation_config_json(),
        "tokenizer_config.json": tokenizer_config_json(),
    }
    tokenizer = {"spiece.model": encoder.sp.serialized_model_proto()}
    export.write_directory(model, tokenizer, documents, export.filled(README, model, accuracies), target)

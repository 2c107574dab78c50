"""`model.model_config`: the sizes of a model, as MindFormers or Hugging Face's config.json spells them.

Knows the keys and their types; knows nothing about what a model does with them. No key has a default here: if a YAML
does not set a key, the model's own config.json or the family's rule decides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from inference.config.generation import GenerationSettings, Temperature, TopK, TopP
from inference.config.values import (
    Count,
    Dtype,
    Epsilon,
    Free,
    NonNegative,
    OptionalText,
    Positive,
    RotaryBase,
    Section,
    Texts,
    TokenId,
    TokenIds,
    only,
)


def _rope_factor(value: Any) -> Any:
    """Validates the RoPE factor: a mapping for Llama 3's extend_method, a number for the others."""
    if isinstance(value, dict) or value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError("must be a number above 0, or a mapping for extend_method LLAMA3")
    return float(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class ModelSettings(Section):
    """The model settings of a YAML; every key is optional."""

    # Model identity.
    type: OptionalText = Field(None, description="MindFormers' config class, such as LlamaConfig.")
    architectures: Texts | None = Field(None, description="Hugging Face's architecture class, in a list.")
    model_type: OptionalText = Field(None, description="Hugging Face's family name, such as llama.")

    # Sizes: MindFormers' name, and Hugging Face's if it differs.
    vocab_size: Count | None = Field(None, description="Rows of the embedding, in tokens.")
    hidden_size: Count | None = Field(None, description="Width of the residual stream.")
    intermediate_size: Count | None = Field(None, description="Width of the feed-forward layer.")
    multiple_of: Count | None = Field(None, description="Rounds up a derived intermediate_size.")
    ffn_dim_multiplier: Positive | None = Field(None, description="Scales a derived intermediate_size.")
    num_layers: Count | None = Field(None, description="Decoder layers.")
    num_hidden_layers: Count | None = Field(None, description="Decoder layers.")
    num_heads: Count | None = Field(None, description="Query heads.")
    num_attention_heads: Count | None = Field(None, description="Query heads.")
    n_kv_heads: Count | None = Field(None, description="Key and value heads; as many as query heads if unset.")
    num_key_value_heads: Count | None = Field(None, description="Key and value heads.")
    head_dim: Count | None = Field(None, description="Width of a head; hidden_size / heads if unset.")
    expand_ratio: Count | None = Field(None, description="intermediate_size / hidden_size, where that is not set.")
    multi_query_attention: bool | None = Field(None, description="Whether multi_query_group_num counts (ChatGLM).")
    multi_query_group_num: Count | None = Field(None, description="Key and value heads (ChatGLM).")
    seq_length: Count | None = Field(None, description="Longest sequence to run with, in tokens.")
    model_max_length: Count | None = Field(None, description="Longest sequence of the model, in tokens (Baichuan).")
    training_seqlen: Count | None = Field(None, description="Longest sequence in training, in tokens (TeleChat).")
    base_seqlen: Count | None = Field(None, description="Longest sequence before the base is scaled (TeleChat).")
    max_position_embedding: Count | None = Field(None, description="Longest sequence of the model, in tokens.")
    max_position_embeddings: Count | None = Field(None, description="Longest sequence of the model, in tokens.")

    # Parts of a layer.
    hidden_act: OptionalText = Field(None, description="Activation of the feed-forward layer, such as silu.")
    rms_norm_eps: Epsilon | None = Field(None, description="Added to the mean square in RMSNorm.")
    qkv_has_bias: bool | None = Field(None, description="Bias in the query, key and value projections.")
    attention_bias: bool | None = Field(None, description="Bias in the attention projections.")
    attention_out_bias: bool | None = Field(None, description="Bias in the attention output projection (Seed-OSS).")
    use_qk_norm: bool | None = Field(None, description="Norm of each head's query and key.")
    mlp_bias: bool | None = Field(None, description="Bias in the feed-forward projections.")
    tie_word_embeddings: bool | None = Field(None, description="Output layer shares the embedding's weights.")
    bias: bool | None = Field(None, description="Bias in the attention projections (InternLM 2).")
    add_bias_linear: bool | None = Field(None, description="Bias in every projection.")
    use_bias: bool | None = Field(None, description="Bias in every projection (StarCoder2, ERNIE 4.5).")
    query_pre_attn_scalar: Positive | None = Field(
        None, description="Scores are divided by its root; head_dim if unset."
    )
    embedding_multiplier: Positive | None = Field(None, description="Multiplies the embeddings (Granite).")
    residual_multiplier: Positive | None = Field(
        None, description="Multiplies what a layer adds to the residual stream (Granite)."
    )
    attention_multiplier: Positive | None = Field(None, description="Multiplies attention scores (Granite).")
    logits_scaling: Positive | None = Field(None, description="Divides the logits (Granite).")
    logit_scale: Positive | None = Field(None, description="Multiplies the logits (Command R).")
    use_parallel_residual: bool | None = Field(
        None, description="Attention and feed-forward read the same input (StableLM)."
    )
    attn_logit_softcapping: Positive | None = Field(
        None, description="Bounds attention scores by a tanh; null for none."
    )
    final_logit_softcapping: Positive | None = Field(None, description="Bounds logits by a tanh; null for none.")
    position_embedding_type: Literal["rope", "partial_rope", "alibi", "learned_absolute"] | None = Field(
        None, description="Kind of the position embedding."
    )
    rmsnorm: bool | None = Field(None, description="Norms are RMSNorm (ChatGLM); must be true.")
    post_layer_norm: bool | None = Field(None, description="A norm before the output layer (ChatGLM); must be true.")
    apply_residual_connection_post_layernorm: bool | None = Field(
        None, description="Residual stream of normed values; must be false."
    )
    embed_layernorm: bool | None = Field(None, description="A norm after the embedding (TeleChat); must be false.")
    scale_attn_weights: bool | None = Field(None, description="Scale scores (GPT-2); must be true.")
    scale_attn_by_inverse_layer_idx: bool | None = Field(
        None, description="Scale scores by the layer's number (GPT-2); must be false."
    )
    use_bidirectional_attention: bool | None = Field(None, description="Tokens see later ones; must be false.")
    initializer_range: float | None = Field(None, description="Standard deviation of random weights.")

    # Rotary embedding.
    theta: RotaryBase | None = Field(None, description="Base of the rotary frequencies.")
    rope_theta: RotaryBase | None = Field(None, description="Base of the rotary frequencies.")
    rope_scaling: Free | None = Field(None, description="Rotary scaling as transformers 4 writes it.")
    rope_parameters: Free | None = Field(None, description="Rotary base and scaling as transformers 5 does.")
    rope_ratio: Positive | None = Field(None, description="Multiplies the base of the rotary frequencies (ChatGLM).")
    rope_local_base_freq: RotaryBase | None = Field(None, description="Base in layers with a window (Gemma 3).")
    partial_rotary_factor: Positive | None = Field(None, description="Part of a head that is rotated, at most 1.")
    original_max_position_embeddings: Count | None = Field(
        None, description="Longest sequence before rotary scaling (Phi-3), in tokens."
    )
    extend_method: OptionalText = Field(
        None, description="MindFormers' rotary scaling: None, PI, NTK, DYNAMIC_NTK, LINEAR, LLAMA3 or YARN."
    )
    scaling_factor: Annotated[float | Free | None, BeforeValidator(_rope_factor)] = Field(
        None, description="Factor of PI and NTK, a mapping for LINEAR, LLAMA3 and YARN."
    )

    no_rope_layers: Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None, description="0 for each layer without rotary embedding, 1 for the others (SmolLM3)."
    )
    no_rope_layer_interval: Count | None = Field(
        None, description="Every n-th layer is without rotary embedding, where no_rope_layers is unset (SmolLM3)."
    )

    # Sliding windows.
    sliding_window: NonNegative | None = Field(None, description="Positions a token looks back; null for all.")
    use_sliding_window: bool | None = Field(None, description="Whether Qwen uses its sliding_window.")
    max_window_layers: NonNegative | None = Field(None, description="Qwen's layers below this see everything.")
    layer_types: Annotated[tuple[str, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None, description="full_attention or sliding_attention for each layer."
    )

    sliding_window_pattern: Count | None = Field(None, description="Every n-th layer sees everything (Gemma).")

    # Row layout of MindFormers' own checkpoints.
    use_rearrange_rope: bool | None = Field(None, description="ChatGLM's rotary pairs are stored as halves.")
    # T5: accepts its own names for the sizes above, or the names above.
    d_model: Count | None = Field(None, description="Width of the residual stream.")
    d_kv: Count | None = Field(None, description="Width of a head.")
    d_ff: Count | None = Field(None, description="Width of the feed-forward layer.")
    num_decoder_layers: Count | None = Field(None, description="Decoder layers; as many as encoder layers if unset.")
    n_positions: Count | None = Field(None, description="Longest text of the model, in tokens.")
    feed_forward_proj: OptionalText = Field(None, description="Kind of the feed-forward layer: relu or gated-gelu.")
    relative_attention_num_buckets: Count | None = Field(None, description="Biases by distance of a head.")
    relative_attention_max_distance: Count | None = Field(None, description="Distances from here on are alike.")
    start_token_id: TokenId = Field(None, description="Token that begins an answer.")
    decoder_start_token_id: TokenId = Field(None, description="Token that begins an answer.")

    # Experts: Hugging Face's names; MindFormers' legacy names are in moe_config.
    num_experts: Count | None = Field(None, description="Experts of a layer (Qwen).")
    num_local_experts: Count | None = Field(None, description="Experts of a layer (Mixtral).")
    n_routed_experts: Count | None = Field(None, description="Experts of a layer (DeepSeek, GLM).")
    num_experts_per_tok: Count | None = Field(None, description="Experts that a token takes.")
    moe_intermediate_size: Count | None = Field(None, description="Width of an expert; intermediate_size if unset.")
    n_shared_experts: NonNegative | None = Field(None, description="Experts that every token takes.")
    shared_expert_intermediate_size: Count | None = Field(None, description="Width of Qwen2-MoE's shared expert.")
    norm_topk_prob: bool | None = Field(None, description="Weights of the chosen experts add up to 1.")
    routed_scaling_factor: Positive | None = Field(None, description="Scales the weights of the chosen experts.")
    scoring_func: OptionalText = Field(None, description="Scores of the router: softmax or sigmoid.")
    topk_method: OptionalText = Field(None, description="greedy, group_limited_greedy or noaux_tc.")
    n_group: Count | None = Field(None, description="Groups of neighboring experts.")
    topk_group: Count | None = Field(None, description="Groups that a token may choose from.")
    first_k_dense_replace: NonNegative | None = Field(None, description="First layers that have no experts.")
    moe_layer_freq: Count | None = Field(None, description="Every how many layers there are experts.")
    decoder_sparse_step: Count | None = Field(
        None, description="The same for Qwen, counted from the first layer's end."
    )
    mlp_only_layers: Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)] = Field(
        None, description="Layers without experts, by number (Qwen)."
    )
    moe_config: Free | None = Field(None, description="MindFormers' section of experts: expert_num and so on.")
    num_nextn_predict_layers: NonNegative | None = Field(
        None, description="Layers at the checkpoint's end that guess further tokens; not run."
    )

    # Latent attention (DeepSeek).
    kv_lora_rank: Count | None = Field(None, description="Size of the latent that keys and values are made of.")
    q_lora_rank: Count | None = Field(None, description="Size of the compressed query; null for none.")
    qk_nope_head_dim: Count | None = Field(None, description="Part of a head's query that is not rotated.")
    qk_rope_head_dim: Count | None = Field(None, description="Part of a head's query that is rotated.")
    v_head_dim: Count | None = Field(None, description="Size of a head's value.")
    rope_interleave: bool | None = Field(None, description="DeepSeek-V3 rotates neighboring pairs.")

    # Data types of the stored weights.
    torch_dtype: OptionalText = Field(None, description="Type of the stored weights (transformers 4).")
    dtype: OptionalText = Field(None, description="Type of the stored weights (transformers 5).")
    quantization_config: Free | None = Field(
        None, description="How they are quantized: gptq, awq, compressed-tensors, fp8."
    )

    # Generation; the section generation_config overrides these.
    max_decode_length: Count | None = Field(None, description="Most tokens of prompt and answer together.")
    max_length: Count | None = Field(None, description="The same; outranks max_decode_length.")
    max_new_tokens: Count | None = Field(None, description="Most tokens of the answer.")
    min_length: NonNegative | None = Field(None, description="Fewest tokens of prompt and answer together.")
    do_sample: bool | None = Field(None, description="Sample tokens instead of taking the likeliest.")
    temperature: Temperature | None = Field(None, description="Divides the logits before sampling.")
    top_k: TopK | None = Field(None, description="Sample among the k most likely tokens.")
    top_p: TopP | None = Field(None, description="Sample among tokens of this total probability.")
    repetition_penalty: Positive | None = Field(None, description="Above 1 avoids tokens that occurred.")
    bos_token_id: TokenId = Field(None, description="Token that begins a sequence.")
    eos_token_id: TokenIds | None = Field(None, description="Tokens that end a sequence: one id or a list.")
    pad_token_id: TokenId = Field(None, description="Token that fills up short rows.")
    use_past: bool | None = Field(None, description="Keep keys and values of past tokens.")

    # Weights.
    checkpoint_name_or_path: OptionalText = Field(None, description="Checkpoint, or the name of a model.")
    pet_config: Free | None = Field(None, description="MindFormers' adapters: those of pet_type slora.")

    # Used only on an Ascend device.
    batch_size: Count | None = Field(None, description="Rows of a static batch.")
    block_size: Count | None = Field(None, description="Tokens in a block of the paged cache.")
    num_blocks: Count | None = Field(None, description="Blocks of the paged cache.")
    is_dynamic: bool | None = Field(None, description="Compile for any shape.")
    use_flash_attention: bool | None = Field(None, description="Use the fused attention kernel.")
    qkv_concat: bool | None = Field(None, description="Join the query, key and value projections.")
    compute_dtype: Dtype | None = Field(None, description="Type of the matrix products.")
    layernorm_compute_type: Dtype | None = Field(None, description="Type of the norms.")
    softmax_compute_type: Dtype | None = Field(None, description="Type of the softmax.")
    rotary_dtype: Dtype | None = Field(None, description="Type of the rotary embedding.")
    param_init_type: Dtype | None = Field(None, description="Type of the weights in memory.")
    embedding_init_type: Dtype | None = Field(None, description="Type of the embedding in memory.")
    residual_dtype: Dtype | None = Field(None, description="Type of the residual stream.")

    # MindFormers' settings that are accepted only at a value that changes nothing.
    has_relative_bias: Annotated[bool, only(True)] | None = Field(None, description="T5's bias by distance.")
    scale_output: Annotated[bool, only(True)] | None = Field(
        None, description="T5's scaling before a tied output layer."
    )
    post_layernorm_residual: Annotated[bool, only(False)] | None = Field(
        None, description="Take the residual stream after the norm."
    )
    attn_proj_has_bias: Annotated[bool, only(False)] | None = Field(
        None, description="Bias in the attention output projection."
    )
    gated_linear_unit: Annotated[bool, only(True)] | None = Field(None, description="Gate in the feed-forward layer.")
    normalization: Annotated[str, only("RMSNorm")] | None = Field(None, description="Kind of the norms.")
    rotary_interleaved: Annotated[bool, only(False)] | None = Field(
        None, description="Rotate neighboring pairs instead of halves."
    )

    def given(self) -> dict[str, Any]:
        """Returns all settings that were set, as plain values; an explicit null is kept as None."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields if name in self.model_fields_set}

    def given_architecture(self) -> dict[str, Any]:
        """Returns the architecture keys that were set, spelled as in the YAML; they override config.json.

        An explicit null is kept as None and removes the key from config.json.
        """
        return {name: value for name, value in self.given().items() if name in ARCHITECTURE_KEYS}

    def generation(self) -> GenerationSettings:
        """Returns the generation settings that were set here."""
        given = {name: getattr(self, name) for name in self.model_fields_set & GENERATION_KEYS}
        length = given.pop("max_decode_length", None)
        if given.get("max_length") is None:
            given["max_length"] = length
        return GenerationSettings.model_validate({name: value for name, value in given.items() if value is not None})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _names(first: str, last: str) -> frozenset[str]:
    """Returns the names of the fields from `first` to `last`, inclusive, in class order."""
    names = list(ModelSettings.model_fields)
    return frozenset(names[names.index(first) : names.index(last) + 1])


ARCHITECTURE_KEYS = _names("type", "quantization_config")
GENERATION_KEYS = _names("max_decode_length", "use_past")
DEVICE_KEYS = _names("batch_size", "residual_dtype")

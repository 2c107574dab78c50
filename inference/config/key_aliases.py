"""Other names of a model's keys, in one table each for where they occur.

Each maps another name (MindFormers' or a family's) to Hugging Face's usual one. Knows names; knows nothing about what a
value means.
"""

from __future__ import annotations

# In config.json and in a YAML's model.model_config. A YAML's are renamed when it is read.
ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_embed": "hidden_size",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "padded_vocab_size": "vocab_size",
    "add_qkv_bias": "qkv_bias",
    "use_qkv_bias": "qkv_bias",
    "layernorm_epsilon": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
    "norm_epsilon": "rms_norm_eps",
    "layer_norm_eps": "rms_norm_eps",
    "hidden_activation": "hidden_act",
    "activation_function": "hidden_act",
}
# The same, but names that are keys of the schema, too: they stay as they are until a model is built. `seq_length` is
# not one of them: it is the length to run with, not the limit of the model.
SCHEMA_ALIASES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "theta": "rope_theta",
    "max_position_embedding": "max_position_embeddings",
    "qkv_has_bias": "qkv_bias",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "d_kv": "head_dim",
    "bias": "attention_bias",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
}
# Only in a YAML's model.model_config: names of MindFormers 1.6 to 2.1, and the schema's names for them.
YAML_ALIASES = {
    "qkv_bias": "qkv_has_bias",
    "num_query_groups": "num_key_value_heads",
    "rotary_base": "rope_theta",
    "init_method_std": "initializer_range",
    "layernorm_compute_dtype": "layernorm_compute_type",
    "softmax_compute_dtype": "softmax_compute_type",
    "params_dtype": "param_init_type",
    "num_moe_experts": "num_experts",
    "moe_router_topk": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "shared_expert_num": "n_shared_experts",
    "moe_router_num_groups": "n_group",
    "moe_router_group_topk": "topk_group",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "qk_pos_emb_head_dim": "qk_rope_head_dim",
    "mtp_num_layers": "num_nextn_predict_layers",
}
# In MindFormers' section `moe_config`.
MOE_CONFIG_ALIASES = {
    "expert_num": "num_experts",
    "num_experts_chosen": "num_experts_per_tok",
    "shared_expert_num": "n_shared_experts",
    "moe_intermediate_size": "moe_intermediate_size",
    "norm_topk_prob": "norm_topk_prob",
    "routed_scaling_factor": "routed_scaling_factor",
    "first_k_dense_replace": "first_k_dense_replace",
    "topk_method": "topk_method",
    "n_group": "n_group",
    "topk_group": "topk_group",
}


def renamed_in_yaml() -> dict[str, str]:
    """Returns the names in a YAML that are renamed when it is read, with the schema's names for them."""
    usual = {name: YAML_ALIASES.get(to, to) for name, to in ALIASES.items()}
    return usual | YAML_ALIASES


def aliases_of_a_model() -> dict[str, str]:
    """Returns all names in config.json and model.model_config that a model's reader translates."""
    return ALIASES | SCHEMA_ALIASES

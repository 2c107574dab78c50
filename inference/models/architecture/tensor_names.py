"""The tensor names in checkpoints that differ from Hugging Face's Llama: MindFormers' and those of some families.

Tables only: pairs (regular expression, replacement), applied in order, which produce Hugging Face's names for Llama.
Fused tensors get their own names, by the order of their rows:

    self_attn.qkv_proj      q, k and v one after another
    self_attn.grouped_qkv   by key/value head: its query heads, its key, its value
    self_attn.grouped_kv    by head: its key, its value
    mlp.gate_up_proj        gate and up one after another

T5's table produces Hugging Face's names for T5; the prefix `transposed_` marks a matrix that is stored [in, out].
"""

from __future__ import annotations

Names = tuple[tuple[str, str], ...]

# MindFormers' Llama, as its convert_weight writes it, and its Megatron-like networks of 1.6 and later. InternLM 2
# shares most of the former names.
MINDFORMERS: Names = (
    (r"tok_embeddings\.(embedding_)?weight$", "embed_tokens.weight"),
    (r"\.attention\.wq\.", ".self_attn.q_proj."),
    (r"\.attention\.wk\.", ".self_attn.k_proj."),
    (r"\.attention\.wv\.", ".self_attn.v_proj."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.attention\.q_norm\.", ".self_attn.q_norm."),
    (r"\.attention\.k_norm\.", ".self_attn.k_norm."),
    (r"\.feed_forward\.(routed_experts\.)?router\.dense\.weight$", ".mlp.gate.weight"),
    (r"\.feed_forward\.routed_experts\.router\.router\.topk_bias$", ".mlp.gate.e_score_correction_bias"),
    (r"\.feed_forward\.routed_experts\.router\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),
    (r"\.feed_forward\.shared_experts_gate\.", ".mlp.shared_expert_gate."),
    (r"\.feed_forward\.shared_experts\.w1\.", ".mlp.shared_experts.gate_proj."),
    (r"\.feed_forward\.shared_experts\.w2\.", ".mlp.shared_experts.down_proj."),
    (r"\.feed_forward\.shared_experts\.w3\.", ".mlp.shared_experts.up_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.norm_out\.", ".norm."),
    (r"^embedding\.word_embeddings\.", "model.embed_tokens."),
    (r"^decoder\.layers\.", "model.layers."),
    (r"^decoder\.final_layernorm\.", "model.norm."),
    (r"^output_layer\.", "lm_head."),
    (r"\.self_attention\.linear_q\.", ".self_attn.q_proj."),
    (r"\.self_attention\.linear_k\.", ".self_attn.k_proj."),
    (r"\.self_attention\.linear_v\.", ".self_attn.v_proj."),
    (r"\.self_attention\.linear_proj\.", ".self_attn.o_proj."),
    (r"\.self_attention\.q_layernorm\.", ".self_attn.q_norm."),
    (r"\.self_attention\.k_layernorm\.", ".self_attn.k_norm."),
    (r"\.mlp\.gating\.", ".mlp.gate_proj."),
    (r"\.mlp\.hidden\.", ".mlp.up_proj."),
    (r"\.mlp\.linear_fc2\.", ".mlp.down_proj."),
    (r"\.pre_mlp_layernorm\.", ".post_attention_layernorm."),
    (r"\.mlp\.router\.weight$", ".mlp.gate.weight"),
    (r"\.mlp\.router\.expert_bias$", ".mlp.gate.e_score_correction_bias"),
    (r"\.mlp\.((shared_)?experts(\.\d+)?)\.gating\.", r".mlp.\1.gate_proj."),
    (r"\.mlp\.((shared_)?experts(\.\d+)?)\.hidden\.", r".mlp.\1.up_proj."),
    (r"\.mlp\.((shared_)?experts(\.\d+)?)\.linear_fc2\.", r".mlp.\1.down_proj."),
)

MIXTRAL: Names = (
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"\.mlp\.experts\.(\d+)\.w1\.", r".mlp.experts.\1.gate_proj."),
    (r"\.mlp\.experts\.(\d+)\.w2\.", r".mlp.experts.\1.down_proj."),
    (r"\.mlp\.experts\.(\d+)\.w3\.", r".mlp.experts.\1.up_proj."),
)

QWEN2_MOE: Names = ((r"\.mlp\.shared_expert\.", ".mlp.shared_experts."),)

# MindFormers' names, up to release 1.5 and later; in other models the last name is the norm of query heads.
DEEPSEEK: Names = (
    (r"\.attention\.q_proj\.", ".self_attn.q_proj."),
    (r"\.attention\.q2l_proj\.", ".self_attn.q_a_proj."),
    (r"\.attention\.lq_norm\.", ".self_attn.q_a_layernorm."),
    (r"\.attention\.l2q_proj\.", ".self_attn.q_b_proj."),
    (r"\.attention\.kv2l\.", ".self_attn.kv_a_proj_with_mqa."),
    (r"\.attention\.lkv_norm\.", ".self_attn.kv_a_layernorm."),
    (r"\.attention\.lkv2kv\.", ".self_attn.kv_b_proj."),
    (r"\.self_attention\.linear_q_down_proj\.", ".self_attn.q_a_proj."),
    (r"\.self_attention\.linear_q_up_proj\.", ".self_attn.q_b_proj."),
    (r"\.self_attention\.linear_kv_down_proj\.", ".self_attn.kv_a_proj_with_mqa."),
    (r"\.self_attention\.linear_kv_up_proj\.", ".self_attn.kv_b_proj."),
    (r"\.self_attention\.kv_layernorm\.", ".self_attn.kv_a_layernorm."),
    (r"\.self_attention\.q_layernorm\.", ".self_attn.q_a_layernorm."),
)

INTERNLM2: Names = (
    (r"\.attention\.wqkv\.", ".self_attn.grouped_qkv."),
    (r"^output\.", "lm_head."),
)

BAICHUAN: Names = ((r"\.W_pack\.", ".qkv_proj."),)

# In other models this name is the norm before the feed-forward; in Gemma it is a norm after attention.
GEMMA: Names = (
    (r"\.post_attention_layernorm\.", ".post_self_attn_layernorm."),
    (r"\.pre_feedforward_layernorm\.", ".post_attention_layernorm."),
    (r"\.post_feedforward_layernorm\.", ".post_mlp_layernorm."),
)

# The names in the authors' code and in MindFormers' conversion, which may split fused tensors.
CHATGLM: Names = (
    (r"^transformer\.embedding\.(word_embeddings\.|embedding_)weight$", "model.embed_tokens.weight"),
    (r"^transformer\.encoder\.layers\.", "model.layers."),
    (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
    (r"^transformer\.output_layer\.", "lm_head."),
    (r"\.self_attention\.query_key_value\.", ".self_attn.qkv_proj."),
    (r"\.self_attention\.w([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
    (r"\.mlp\.dense_left\.", ".mlp.gate_proj."),
    (r"\.mlp\.dense_right\.", ".mlp.up_proj."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
)

# The first files have no prefix. MindFormers stores q, k and v separately, and only these as [out, in].
GPT2: Names = (
    (r"^(transformer\.)?wte\.", "model.embed_tokens."),
    (r"^(transformer\.)?wpe\.", "model.embed_positions."),
    (r"^(transformer\.)?ln_f\.", "model.norm."),
    (r"^(transformer\.)?h\.", "model.layers."),
    (r"\.ln_1\.", ".input_layernorm."),
    (r"\.ln_2\.", ".post_attention_layernorm."),
    (r"\.attn\.c_attn\.", ".self_attn.qkv_proj."),
    (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.up_proj."),
    (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
    (r"^backbone\.embedding\.word_embedding\.embedding_table$", "model.embed_tokens.weight"),
    (r"^backbone\.embedding\.position_embedding\.embedding_table$", "model.embed_positions.weight"),
    (r"^backbone\.layernorm\.", "model.norm."),
    (r"^backbone\.blocks\.", "model.layers."),
    (r"\.layernorm1\.", ".input_layernorm."),
    (r"\.layernorm2\.", ".post_attention_layernorm."),
    (r"norm\.gamma$", "norm.weight"),
    (r"norm\.beta$", "norm.bias"),
    (r"\.attention\.dense1\.", ".self_attn.q_proj."),
    (r"\.attention\.dense2\.", ".self_attn.k_proj."),
    (r"\.attention\.dense3\.", ".self_attn.v_proj."),
    (r"\.attention\.projection\.", ".self_attn.o_proj."),
    (r"\.output\.mapping\.", ".mlp.up_proj."),
    (r"\.output\.projection\.", ".mlp.down_proj."),
)

# Models without norms before their sublayers. In other models, the first name is the norm before the feed-forward.
POST_NORMS: Names = (
    (r"\.post_attention_layernorm\.", ".post_self_attn_layernorm."),
    (r"\.post_feedforward_layernorm\.", ".post_mlp_layernorm."),
)

# All experts of a layer are in one tensor, which `separate_experts` splits.
GRANITE_MOE: Names = (
    (r"\.block_sparse_moe\.router\.layer\.", ".mlp.gate."),
    (r"\.block_sparse_moe\.input_linear\.", ".mlp.experts.gate_up_proj."),
    (r"\.block_sparse_moe\.output_linear\.", ".mlp.experts.down_proj."),
)

HUNYUAN: Names = (
    (r"\.self_attn\.query_layernorm\.", ".self_attn.q_norm."),
    (r"\.self_attn\.key_layernorm\.", ".self_attn.k_norm."),
)

PHI: Names = (
    (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
    (r"\.mlp\.fc1\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    (r"^model\.final_layernorm\.", "model.norm."),
)

STARCODER2: Names = ((r"\.mlp\.c_fc\.", ".mlp.up_proj."), (r"\.mlp\.c_proj\.", ".mlp.down_proj."))

TELECHAT: Names = (
    (r"^transformer\.word_embeddings\.", "model.embed_tokens."),
    (r"^transformer\.ln_f\.", "model.norm."),
    (r"^transformer\.h\.", "model.layers."),
    (r"\.self_attention\.query\.", ".self_attn.q_proj."),
    (r"\.self_attention\.key\.", ".self_attn.k_proj."),
    (r"\.self_attention\.value\.", ".self_attn.v_proj."),
    (r"\.self_attention\.key_value\.", ".self_attn.grouped_kv."),
    (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
)

# Names that MindFormers' convert_weight writes for T5.
T5: Names = (
    (r"^t5_model\.tfm_embedding_lookup\.embedding_table$", "shared.weight"),
    (r"^t5_model\.(encoder|decoder)_layernorm\.gamma$", r"\1.final_layer_norm.weight"),
    (r"^t5_model\.tfm_(encoder|decoder)\.blocks\.(\d+)\.", r"\1.block.\2.layer."),
    (r"\.layer\.layernorm1\.gamma$", ".layer.0.layer_norm.weight"),
    (r"\.layer\.cross_attention_layernorm\.gamma$", ".layer.1.layer_norm.weight"),
    (r"^(encoder\..*\.layer)\.layernorm2\.gamma$", r"\1.1.layer_norm.weight"),
    (r"^(decoder\..*\.layer)\.layernorm2\.gamma$", r"\1.2.layer_norm.weight"),
    (r"\.layer\.attention\.", ".layer.0.SelfAttention."),
    (r"\.layer\.cross_attention\.", ".layer.1.EncDecAttention."),
    (r"Attention\.dense1\.", "Attention.q."),
    (r"Attention\.dense2\.", "Attention.k."),
    (r"Attention\.dense3\.", "Attention.v."),
    (r"Attention\.projection\.", "Attention.transposed_o."),
    (r"\.bias_generator\.embeddings_table$", ".relative_attention_bias.weight"),
    (r"^(encoder\..*\.layer)\.output\.", r"\1.1.DenseReluDense."),
    (r"^(decoder\..*\.layer)\.output\.", r"\1.2.DenseReluDense."),
    (r"\.DenseReluDense\.mapping\.", ".DenseReluDense.transposed_wi."),
    (r"\.DenseReluDense\.projection\.", ".DenseReluDense.transposed_wo."),
)

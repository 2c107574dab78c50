"""Known keys that have no effect, alternative names of keys, and mutually exclusive keys.

Tables only. The keys come from MindFormers (1.0 to 2.1) and Hugging Face; a key that is in neither these tables nor
the schema is a mistake.
"""

from __future__ import annotations

from inference.config.generation import IGNORED_KEYS
from inference.config.key_aliases import MOE_CONFIG_ALIASES, renamed_in_yaml
from inference.config.layer import KeyPath
from inference.config.model_settings import DEVICE_KEYS, GENERATION_KEYS

MODEL = ("model", "model_config")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Training, evaluation, profiling, checkpoint conversion, and one vendor's cloud services.
_ROOT = _words("""
    runner_config runner_wrapper optimizer lr_schedule grouped_lr_schedule train_dataset train_dataset_task
    eval_dataset eval_dataset_task predict_dataset callbacks eval_callbacks metric do_eval eval_step_interval
    eval_epoch_interval resume_training resume_or_finetune_checkpoint resume_by_last_timestamp_ckpt
    ignore_data_skip data_skip_steps data_size recompute_config swap_config monitor_config
    micro_batch_interleave_num recompute mp_comm_recompute parallel_optimizer_comm_recompute
    recompute_slice_activation layer_scale layer_decay lr_scale lr_scale_factor print_separate_loss
    calculate_per_token_loss check_for_nan_in_loss_and_grad use_clip_grad max_grad_norm
    profile profile_start_step profile_stop_step profile_end_step profile_rank_ids profile_pipeline
    profile_level profile_communication profile_memory profile_output profiler_level init_start_profile mstx
    with_stack data_simplification auto_tune filepath_prefix autotune_per_step tensorboard
    remote_save_url aicc_config cloud_config obs_path
    src_strategy_path_or_dir only_save_strategy transform_process_num transform_by_rank npu_num_per_node
    remove_redundancy load_ckpt_async use_legacy use_legacy_format balanced_load reshard_worker_num
    save_checkpoint checkpoint exclude_cann_cpu train_precision_sync infer_precision_sync
    postprocess_use_numpy use_graceful_exit affinity_cpu_list affinity_config monitor_local_loss
    monitor_device_local_loss use_checkpoint_health_monitor print_expert_load trust_remote_code modal_type
    register_path infer ckpt_prefix push_to_hub hub_model_id hub_token hub_private_repo hub_strategy
    disable_tqdm local_rank
""")

_CONTEXT = _words("""
    precompile_only auto_tune_mode enable_reduce_precision variable_memory_max_size enable_profiling
    profiling_options enable_auto_mixed_precision reserve_class_name_in_scope check_bprop print_file_path
    enable_sparse env_config_path save_compile_cache load_compile_cache enable_compile_cache
    compile_cache_path grad_for_scalar pynative_synchronize op_timeout inter_op_parallel_num
    disable_format_transform support_binary memory_offload jit_syntax_level gpu_config enable_dump
    save_dump_path dataset_broadcast_opt_level
""")

_PARALLEL = _words("""
    device_num global_rank gradients_mean gradient_fp32_sync auto_parallel_search_mode search_mode
    parameter_broadcast strategy_ckpt_load_file strategy_ckpt_save_file strategy_ckpt_config full_batch
    enable_parallel_optimizer enable_alltoall all_reduce_fusion_config pipeline_stages grad_accumulation_step
    parallel_optimizer_config comm_fusion auto_pipeline pipeline_config dataset_strategy loss_repeated_mean
    gpipe_scheduler group_ckpt_save_file
""")

_PARALLEL_CONFIG = _words("""
    context_parallel micro_batch_num seq_split_num use_seq_parallel optimizer_shard gradient_aggregation_group
    vocab_emb_dp context_parallel_algo ulysses_degree_in_cp mem_coeff recompute swap npu_nums_per_device
    expert_model_parallel virtual_pipeline_model_parallel_size disable_lazy_inline
""")

# Training, and how MindFormers lays a model out on an Ascend device.
_MODEL_CONFIG = _words("""
    parallel_config ignore_token_id offset pp_interleave_num fine_grain_interleave start_stage
    stage_num pipeline_stage parallel_optimizer init_method init_method_std_rules param_init_std_rules
    output_layer_init_method hidden_dropout hidden_dropout_prob hidden_dropout_rate attention_dropout
    attention_dropout_rate attention_probs_dropout_prob embedding_dropout_prob emb_dropout_prob dropout_prob
    use_ring_attention use_attn_mask_compression use_eod_attn_mask_compression use_eod_reset
    use_rope_slice use_fused_rope apply_rope_fusion use_fused_swiglu bias_swiglu_fusion bias_dropout_fusion
    fused_rms_norm fused_norm rmsnorm_compute_2d compute_in_2d use_past_shard use_paged_attention
    use_contiguous_weight_layout_attention use_interleaved_weight_layout_mlp
    use_kvcache_op is_flexible_shape use_incre_flash_attention use_prompt_flash_attention
    use_attention_mask
    input_sliced_sig input_layout sparse_mode calculate_per_token_loss return_hidden_states chunk_prefill
    llm_backend boost_model_type need_nz quant quant_config quantization parallel_decoding_params
    is_sample_acceleration qk_layernorm activation_func fp32_residual_connection
    attention_softmax_in_fp32 apply_query_key_layer_scaling
    mask_func_type fp16_lm_cross_entropy track_max_attention_logit post_process pre_process softmax_scale
    attn_reduce_scatter attn_allgather attn_allreduce ffn_reduce_scatter ffn_allgather ffn_allreduce
    use_alltoall print_separate_loss disable_lazy_inline monitor_config experimental_attention_variant
    micro_batch_num auto_map auto_register tokenizer_class trust_remote_code name_or_path _name_or_path
    _commit_hash pretrained_model_dir mindformers_version transformers_version use_cache pretraining_tp
    length_penalty_weight initializer_factor
    is_encoder_decoder is_decoder attn_implementation _attn_implementation use_mrope rope_interleaved
    output_attentions output_hidden_states return_dict output_router_logits num_labels
    resid_pdrop embd_pdrop attn_pdrop embedding_dropout residual_dropout
    summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout task_specific_params n_ctx reorder_and_upcast_attn
    gradient_checkpointing z_loss_weight cache_implementation chunk_size_feed_forward
    _sliding_window_pattern logn masked_softmax_fusion flash_attn skip_bias_add skip_bias_add_qkv slow_but_exact
    offset_alibi unk_token_id res_dtype pretrain_seqlen embed_dropout_prob out_proj_has_bias wo_has_bias
    id2label label2id problem_type tie_encoder_decoder add_cross_attention eod_token_id
""")

# Keys of families that this project does not run (the registry rejects those by name first), and keys for how
# MindFormers trains and lays out experts.
_OTHER_FAMILIES = _words("""
    capacity_factor aux_loss_factor router_aux_loss_coef router_jitter_noise router_dense_type
    moe_shared_expert_intermediate_size moe_shared_expert_overlap moe_router_load_balancing_type
    moe_router_pre_softmax moe_router_fusion moe_router_dtype moe_router_enable_expert_bias
    moe_router_bias_update_rate moe_router_force_expert_balance moe_router_score_function moe_aux_loss_coeff
    moe_z_loss_coeff moe_grouped_gemm moe_token_dispatcher_type moe_token_drop_policy
    moe_expert_capacity_factor moe_permute_fusion moe_apply_probs_on_input use_fused_ops_topkrouter
    use_fused_ops_permute use_pad_tokens use_gmm npu_nums_per_device callback_moe_droprate
    enable_expert_relocation expert_relocation_freq expert_relocation_initial_iteration dispatch_global_max_bs
    use_shared_expert_gating multi_latent_attention qk_head_dim mla_qkv_concat use_fused_mla mtp_depth
    mtp_loss_factor mtp_loss_scaling_factor beta_fast beta_slow mscale mscale_all_dim rotary_scaling_factor
    rotary_percent rotary_pct original_rope
    post_self_attn_layernorm post_mlp_layernorm layernorm_order
    quantization_bit pre_seq_len prefix_projection interleaved_qkv mlp_concat gmask_token_id num_queries
    logits_soft_cap vision_model llm_model
""")

_TOKENIZER = _words("""
    auto_register auto_map tokenizer_class use_fast sp_model_kwargs clean_up_tokenization_spaces legacy
    add_prefix_space errors do_lower_case padding padding_side truncation truncation_side return_tensors
    use_default_system_prompt trust_remote_code spaces_between_special_tokens split_special_tokens
    cls_token sep_token mask_token gmask_token end_token sop_token eop_token model_input_names tokenizer_path
    name_or_path from_slow
""")

NOT_ACTED_ON: dict[KeyPath, frozenset[str]] = {
    (): _ROOT,
    ("context",): _CONTEXT,
    ("parallel",): _PARALLEL,
    ("parallel_config",): _PARALLEL_CONFIG,
    ("model",): _words("pretrained_model_dir"),
    MODEL: _MODEL_CONFIG | _OTHER_FAMILIES,
    ("processor",): _words(
        "return_tensors padding max_length image_processor audio_processor model_transform_template"
    ),
    ("processor", "tokenizer"): _TOKENIZER,
    ("generation_config",): IGNORED_KEYS,
}
TYPED_BUT_NOT_ACTED_ON: dict[KeyPath, frozenset[str]] = {
    MODEL: DEVICE_KEYS,
    ("parallel",): frozenset({"parallel_mode"}),
    ("context",): frozenset(
        {
            "affinity_config",
            "affinity_cpu_list",
            "enable_graph_kernel",
            "graph_kernel_flags",
            "infer_boost",
            "jit_config",
            "jit_level",
            "memory_optimize_level",
            "mempool_block_size",
            "runtime_num_threads",
        }
    ),
    ("processor", "tokenizer"): frozenset(
        {"add_special_tokens", "checkpoint_name_or_path", "max_length", "merges_file", "model_max_length"}
    ),
}

# MindFormers' alternative names of keys. They are renamed when a layer is read, so that each key has only one name.
RENAMED: dict[KeyPath, KeyPath] = {
    ("save_file",): ("output", "save_file"),
    ("generation_config", "max_decode_length"): ("generation_config", "max_length"),
    ("moe_config",): (*MODEL, "moe_config"),
    **{(*MODEL, other): (*MODEL, name) for other, name in renamed_in_yaml().items()},
}
# MindFormers' keys with the opposite meaning.
NEGATED: dict[KeyPath, KeyPath] = {
    (*MODEL, "untie_embeddings_and_output_weights"): (*MODEL, "tie_word_embeddings"),
}

# Names that are kept because models know every name of a group. Setting two of them to different values in one source
# is a mistake.
_SPELLINGS = (
    "hidden_size d_model",
    "intermediate_size d_ff",
    "head_dim d_kv",
    "num_layers num_hidden_layers",
    "num_heads num_attention_heads",
    "n_kv_heads num_key_value_heads multi_query_group_num",
    "max_position_embedding max_position_embeddings",
    "hidden_act feed_forward_proj",
    "attention_bias bias",
    "theta rope_theta rope_parameters.rope_theta",
    "partial_rotary_factor rope_parameters.partial_rotary_factor",
    "start_token_id decoder_start_token_id",
    "torch_dtype dtype",
    "num_experts num_local_experts n_routed_experts moe_config.expert_num",
    *(f"{name} moe_config.{other}" for other, name in MOE_CONFIG_ALIASES.items() if other != "expert_num"),
)
SYNONYMS: tuple[tuple[KeyPath, ...], ...] = tuple(
    tuple((*MODEL, *name.split(".")) for name in group.split()) for group in _SPELLINGS
)

_LENGTHS = ("max_length", "max_decode_length", "max_new_tokens")
_SHARED = sorted(GENERATION_KEYS - set(_LENGTHS))
# In each group, only the keys from the latest source count.
RIVALS: tuple[tuple[KeyPath, ...], ...] = (
    *SYNONYMS,
    tuple((*section, name) for section in (MODEL, ("generation_config",)) for name in _LENGTHS),
    *(((*MODEL, name), ("generation_config", name)) for name in _SHARED),
    (("seed",), ("generation_config", "seed")),
    ((*MODEL, "rope_scaling"), (*MODEL, "extend_method"), (*MODEL, "rope_parameters")),
)

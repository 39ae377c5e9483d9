"""ms-swift's training arguments: names, ranges, choices, and those that a recipe must not set.

A dry run checks recipes with them, without importing ms-swift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from coordexp.modeling.adapter_options import TRAINED_INITIALISATIONS, TUNERS, check_modules_to_save
from coordexp.runtime.config_io import checked
from coordexp.runtime.errors import ConfigError, located, nearest

Positive = Annotated[float, Meta(gt=0)] | None
NonNegative = Annotated[float, Meta(ge=0)] | None
Probability = Annotated[float, Meta(ge=0, lt=1)] | None
Share = Annotated[float, Meta(ge=0, le=1)] | None
Count = Annotated[int, Meta(ge=1)] | None
CountOrZero = Annotated[int, Meta(ge=0)] | None


Seed = Annotated[int, Meta(ge=0, lt=2**32)] | None
Switch = bool | None
When = Literal["no", "steps", "epoch"] | None
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
]  # fmt: skip
Optimizer = Literal[
    "adafactor", "adagrad", "adalomo", "adamw_8bit", "adamw_anyprecision", "adamw_bnb_8bit", "adamw_torch",
    "adamw_torch_4bit", "adamw_torch_8bit", "adamw_torch_fused", "adamw_torch_npu_fused", "adamw_torch_xla",
    "ademamix", "ademamix_8bit", "apollo_adamw", "apollo_adamw_layerwise", "galore_adafactor",
    "galore_adafactor_layerwise", "galore_adamw", "galore_adamw_8bit", "galore_adamw_8bit_layerwise",
    "galore_adamw_layerwise", "grokadamw", "lion_32bit", "lion_8bit", "lomo", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "rmsprop_bnb_8bit", "schedule_free_adamw", "schedule_free_radam",
    "schedule_free_sgd", "sgd", "stable_adamw",
]  # fmt: skip
ATTENTION = r"^(eager|sdpa|flash_attn|flash_attention_[234]|flex_attention|.+/.+)$"  # with a slash: a kernel of a hub
DEEPSPEED = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")  # ms-swift's configurations


class Ranges(msgspec.Struct, frozen=True):
    """Ranges and choices of the arguments that a recipe is likely to set; null is ms-swift's default."""

    max_length: Count = None
    max_pixels: Count = None
    dataloader_num_workers: CountOrZero = None
    dataloader_prefetch_factor: Count = None
    lora_rank: Count = None
    lora_alpha: Count = None
    lora_dropout: Probability = None
    num_train_epochs: Positive = None
    max_steps: Count = None
    per_device_train_batch_size: Count = None
    per_device_eval_batch_size: Count = None
    gradient_accumulation_steps: Count = None
    learning_rate: Positive = None
    vit_lr: NonNegative = None
    aligner_lr: NonNegative = None
    warmup_ratio: Share = None
    warmup_steps: NonNegative = None
    weight_decay: NonNegative = None
    max_grad_norm: NonNegative = None
    adam_beta1: Probability = None
    adam_beta2: Probability = None
    adam_epsilon: Positive = None
    logging_steps: Positive = None
    save_steps: Positive = None
    eval_steps: Positive = None
    save_total_limit: Count = None
    seed: Seed = None
    data_seed: Seed = None
    torch_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    attn_impl: Annotated[str, Meta(pattern=ATTENTION)] | None = None
    lora_bias: Literal["none", "all"] | None = None
    use_rslora: Switch = None
    use_dora: Switch = None
    bf16: Switch = None
    fp16: Switch = None
    tf32: Switch = None
    gradient_checkpointing: Switch = None
    optim: Optimizer | None = None
    lr_scheduler_type: Scheduler | None = None
    eval_strategy: When = None
    logging_strategy: When = None


BY_EPOCHS = {"max_steps": -1}  # ms-swift's value for "as many as num_train_epochs has"
# Of the pinned version. A test compares them with ms-swift's own.
NAMES = frozenset(
    """
    acc_strategy accelerator_config adalora_beta1 adalora_beta2 adalora_deltaT adalora_init_r adalora_orth_reg_weight
    adalora_target_r adalora_tfinal adalora_tinit adam_beta1 adam_beta2 adam_epsilon adapter_act adapter_length adapters
    add_non_thinking_prefix add_version agent_template aligner_lr attn_impl auto_find_batch_size
    average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval bnb_4bit_compute_dtype bnb_4bit_quant_storage
    bnb_4bit_quant_type bnb_4bit_use_double_quant boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor
    cached_dataset cached_val_dataset callbacks check_model columns create_checkpoint_symlink custom_dataset_info
    custom_register_path data_seed dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context
    dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor dataset
    dataset_num_proc dataset_shuffle ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
    ddp_static_graph ddp_timeout debug decision_drop_instructions decision_shuffle_fields decision_state_as_text
    decision_subsample_options deepspeed deepspeed_autotp_size device_groups device_map disable_auto_column_mapping
    disable_ignore_empty_think disable_tqdm do_eval do_predict do_train download_mode ds3_gather_for_generation
    early_stop_interval enable_channel_loss enable_dft_loss enable_jit_checkpoint enable_npu_model_patch enable_thinking
    eval_accumulation_steps eval_dataset eval_dataset_args eval_delay eval_do_concat_batches eval_generation_config
    eval_limit eval_metric eval_on_start eval_steps eval_strategy eval_use_evalscope eval_use_gather_object experts_impl
    external_plugins extra_eval_args fourier_n_frequency fourier_scaling fp16 fp16_full_eval freeze_aligner freeze_llm
    freeze_parameters freeze_parameters_ratio freeze_parameters_regex freeze_vit fsdp fsdp_config full_determinism
    galore_cos_threshold galore_gamma_proj galore_optim_per_parameter galore_proj_bits galore_proj_group_size
    galore_proj_quant galore_proj_type galore_quantization galore_queue_size galore_rank galore_scale
    galore_target_modules galore_update_proj_gap galore_with_embedding generation_config generation_max_length
    generation_num_beams gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
    greater_is_better group_by_length hqq_axis hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy
    hub_token ignore_args_error ignore_data_skip include_for_metrics include_num_input_tokens_seen init_strategy
    init_weights interleave_prob is_binary_loss_scale label_names label_smoothing_factor lazy_tokenize learning_rate
    length_column_name liger_kernel_config lisa_activated_layers lisa_step_interval llamapro_num_groups
    llamapro_num_new_blocks load_args load_best_model_at_end load_data_args load_from_cache_file local_rank
    local_repo_path log_level log_level_replica log_on_each_node logging_dir logging_first_step logging_nan_inf_filter
    logging_steps logging_strategy logprobs lora_alpha lora_bias lora_dropout lora_dtype lora_ga_batch_size
    lora_ga_direction lora_ga_iters lora_ga_max_length lora_ga_scale lora_ga_stable_gamma lora_rank lorap_lr_ratio
    loss_scale loss_type lr_scheduler_kwargs lr_scheduler_type max_epochs max_grad_norm max_length max_memory
    max_model_len max_new_tokens max_pixels max_shard_size max_steps metric_for_best_model model model_author
    model_kwargs model_name model_revision model_type modules_to_save mrl_dims neftune_noise_alpha new_special_tokens
    norm_bbox num_beams num_labels num_train_epochs optim optim_args optim_target_modules optimizer output_dir packing
    packing_length packing_num_proc packing_strategy padding_free padding_side parallelism_config
    per_device_eval_batch_size per_device_train_batch_size predict_with_generate prediction_loss_only preserve_thinking
    problem_type project push_to_hub quant_bits quant_method ray_exp_name reft_args reft_intervention_type
    reft_layer_key reft_layers reft_rank remove_unused_columns repetition_penalty report_to response_prefix
    restore_callback_states_from_checkpoint resume_from_checkpoint resume_only_model rope_scaling router_aux_loss_coef
    run_name safe_serialization save_on_each_node save_only_model save_steps save_strategy save_total_limit seed
    sequence_parallel_size shuffle_buffer_size skip_memory_metrics sortish_sampler split_dataset_ratio stop_words
    stopping_strategy stream streaming strict structured_outputs_regex swanlab_email_language swanlab_exp_name
    swanlab_mode swanlab_notification_method swanlab_project swanlab_receiver_email swanlab_secret swanlab_sender_email
    swanlab_smtp_port swanlab_smtp_server swanlab_token swanlab_webhook_url swanlab_workspace system target_modules
    target_parameters target_regex task_type temperature template template_backend tf32 top_k top_logprobs top_p
    torch_compile torch_compile_backend torch_compile_mode torch_dtype torch_empty_cache_steps trackio_bucket_id
    trackio_space_id trackio_static_space_id train_dataloader_shuffle train_sampling_strategy trainable_parameters
    trainable_parameters_regex truncation_strategy tuner_backend tuner_type use_cache use_chat_template use_cpu use_dora
    use_flash_ckpt use_galore use_hf use_liger_kernel use_logits_to_keep use_ray use_rslora use_swift_lora val_dataset
    val_dataset_shuffle vera_d_initial vera_dropout vera_projection_prng_key vera_rank vit_gradient_checkpointing vit_lr
    warmup_ratio warmup_steps weight_decay zero_hpz_partition_size
    """.split()  # noqa: SIM905
)


def check_arguments(sections: Mapping[str, Mapping[str, Any]], file: object) -> None:
    """ConfigError that lists unknown arguments and invalid values in the sections of a recipe."""
    problems = []
    for section, values in sections.items():
        for key in values:
            if key not in NAMES:
                problem = f"ms-swift has no such argument{nearest(key, NAMES)}"
                problems.append(located(problem, file=file, field=f"{section}.{key}"))
        known = {key: value for key, value in values.items() if key in Ranges.__struct_fields__}
        try:
            checked({k: v for k, v in known.items() if v != BY_EPOCHS.get(k, ())}, Ranges, file, section)
        except ConfigError as error:
            problems.append(str(error))
        name = values.get("deepspeed")
        if isinstance(name, str) and name not in DEEPSPEED and not name.endswith(".json") and "{" not in name:
            expected = f"one of {', '.join(DEEPSPEED)}, or a JSON file"
            facts = {"field": f"{section}.deepspeed", "expected": expected, "found": name}
            problems.append(located(f"unknown configuration{nearest(name, DEEPSPEED)}", file=file, **facts))
    if problems:
        raise ConfigError("\n".join(problems))


LONG_SAMPLES = ("raise", "delete")  # values of template.truncation_strategy: an error, or skip the sample and count it


class Refusal(NamedTuple):
    """Why a recipe must not set an argument of ms-swift, and the values that are allowed nevertheless."""

    reason: str
    allowed: tuple[Any, ...]


NOT_AT_INFERENCE = "inference would not use it: prompts come from custom.user_prompt and custom.category_prompt"
NOT_MERGEABLE = "the adapter could not be merged"
ALL_EXPERTS = "all-experts"  # value of target_parameters: LoRA on the weights of all experts of a mixture of experts
NOT_RESUMABLE = "an interrupted training run could not resume exactly"
# Arguments of ms-swift that would bypass our loss, samples or checkpoints, or that would have no effect.
REFUSED_ARGUMENTS: dict[str, Refusal] = {
    "use_liger_kernel": Refusal("its fused loss computes no logits, which every loss term needs", (None, False)),
    "sequence_parallel_size": Refusal("it would split the tokens of a box over several processes", (None, 1)),
    "enable_dft_loss": Refusal("it replaces the loss", (None, False)),
    "enable_channel_loss": Refusal("it replaces the loss", (None, False)),
    "label_smoothing_factor": Refusal(
        "the loss does not read it; custom.loss.sigma smooths coordinate targets", (None, 0)
    ),
    "loss_scale": Refusal("the loss does not read it; use custom.loss.weights.text", (None, "default")),
    "system": Refusal(NOT_AT_INFERENCE, (None, "")),
    "use_chat_template": Refusal(NOT_AT_INFERENCE, (None, True)),
    "response_prefix": Refusal(NOT_AT_INFERENCE, (None, "")),
    "enable_thinking": Refusal(NOT_AT_INFERENCE, (None,)),
    "add_non_thinking_prefix": Refusal(NOT_AT_INFERENCE, (None,)),
    "agent_template": Refusal(NOT_AT_INFERENCE, (None,)),
    "template_backend": Refusal(NOT_AT_INFERENCE, (None, "swift")),
    "average_tokens_across_devices": Refusal("the loss is always normalised over all processes", (None, True)),
    "router_aux_loss_coef": Refusal("the loss has no router term", (None, 0)),
    "save_only_model": Refusal(NOT_RESUMABLE, (None, False)),
    "ignore_data_skip": Refusal(NOT_RESUMABLE, (None, False)),
    "resume_only_model": Refusal(NOT_RESUMABLE, (None, False)),
    "tuner_type": Refusal("only LoRA, DoRA and full weights can be merged afterwards", TUNERS),
    "init_weights": Refusal("the base would change with it, or ms-swift lacks it", TRAINED_INITIALISATIONS),
    "tuner_backend": Refusal(NOT_MERGEABLE, (None, "peft")),
    "use_swift_lora": Refusal(NOT_MERGEABLE, (None, False)),
    "target_parameters": Refusal(
        f"only the experts can be merged, all together: [{ALL_EXPERTS}]", (None, [], [ALL_EXPERTS])
    ),
    "adapters": Refusal("the adapter would not be merged into the base; merge it first", (None, [])),
    "use_flash_ckpt": Refusal("a checkpoint must be complete when the save call returns", (None, False)),
    "save_strategy": Refusal("a checkpoint must be saved: it is the result", (None, "steps", "epoch", "best")),
    "load_best_model_at_end": Refusal("it has no effect; custom.detection_eval selects the checkpoint", (None, False)),
    "split_dataset_ratio": Refusal("it has no effect; custom.val_jsonl is the validation data", (None, 0)),
    "external_plugins": Refusal("use the workflow's `plugins`, or $COORDEXP_PLUGINS", (None, [])),
    "columns": Refusal("it has no effect on records", (None, {}, "")),
    "dataloader_multiprocessing_context": Refusal(
        "loader workers that are not forked would stay in the first epoch", (None, "fork")
    ),
}


def check_refusals(sections: Mapping[str, Mapping[str, Any]], file: object) -> None:
    """ConfigError for arguments of ms-swift that would bypass our loss or truncate an answer."""
    given = {key: (section, value) for section, values in sections.items() for key, value in values.items()}

    def refuse(key: str, problem: str, fix: str) -> None:
        section, value = given[key]
        raise ConfigError(located(problem, file=file, field=f"{section}.{key}", found=value, fix=fix))

    if given.get("truncation_strategy", ("", None))[1] not in (None, *LONG_SAMPLES):
        refuse("truncation_strategy", "answers must not be truncated", f"choose one of {', '.join(LONG_SAMPLES)}")
    flash = str(given.get("attn_impl", ("", None))[1]).startswith("flash")
    for key in ("packing", "padding_free"):
        if given.get(key, ("", False))[1] and not flash:
            fix = "set model.attn_impl: flash_attention_2"
            refuse(key, "only flash attention keeps packed samples separate", fix)
    for key, (reason, allowed) in REFUSED_ARGUMENTS.items():
        if key in given and given[key][1] not in allowed:
            refuse(key, f"must not be set: {reason}", "remove it")
    saved = given.get("modules_to_save", ("", None))[1]
    if saved:
        names = [f"{entry}.weight" for entry in ([saved] if isinstance(saved, str) else saved)]
        check_modules_to_save({"modules_to_save": saved}, names, file)

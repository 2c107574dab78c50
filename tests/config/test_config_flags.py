"""The table of flags: each sets a key that exists, with a value of the key's type."""

from __future__ import annotations

import pytest

from inference.config import Override, load_config
from inference.config.flags import FLAGS, Flag

# run_mindformer.py's own, but for --config, --options and --predict_data, which set no key.
MINDFORMERS = [
    "mode",
    "device_id",
    "device_target",
    "run_mode",
    "do_eval",
    "train_dataset_dir",
    "eval_dataset_dir",
    "modal_type",
    "predict_batch_size",
    "adapter_id",
    "load_checkpoint",
    "src_strategy_path_or_dir",
    "auto_trans_ckpt",
    "transform_process_num",
    "only_save_strategy",
    "resume_training",
    "strategy_load_checkpoint",
    "remote_save_url",
    "seed",
    "use_parallel",
    "profile",
    "epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "sink_mode",
    "num_samples",
    "output_dir",
    "register_path",
    "do_sample",
    "trust_remote_code",
]
SAMPLES = {
    "--logit_bias": "42=-5",
    "--chat_template_kwargs": "{enable_thinking: false}",
    "--run_mode": "predict",
    "--load_ckpt_format": "ckpt",
    "--device_target": "Ascend",
    "--truncate": "left",
    "--output_format": "json",
    "--input_format": "csv",
    "--min_score": "exact_match=0.5",
    "--adapter": "support=./lora",
    "--weight_dtype": "int8",
    "--kv_cache_dtype": "float16",
    "--max_score": "perplexity=2",
    "--max_drop": "bleu=1",
}


def test_every_flag_of_mindformers_exists() -> None:
    names = [flag.name for flag in FLAGS]
    assert len(names) == len(set(names))
    assert {f"--{name}" for name in MINDFORMERS} <= set(names)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_flag_sets_its_key(flag: Flag) -> None:
    samples = {int: 1, float: 0.5, bool: True, str: "x"}
    value = SAMPLES.get(flag.name, samples[flag.kind])
    config = load_config({}, overrides=[Override(flag.path, [value] if flag.multiple else value, flag.name)])
    assert config.origin(flag.path) == flag.name
    unused = [key for key, _ in config.unused_keys]
    assert any(flag.path.startswith(key) for key in unused) != flag.acted_on
    assert flag.help.endswith(".")
    assert "\n" not in flag.help


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.choices], ids=lambda flag: flag.name)
def test_every_choice_is_accepted(flag: Flag) -> None:
    for choice in flag.choices:
        load_config({}, overrides=[Override(flag.path, choice, flag.name)])

"""The flags that set a config key: those of MindFormers' `run_mindformer.py`, with the same meaning, and ours.

A plain table from which the command line is built; knows nothing about click. Flags that set no key
(`--config`, `--options`, `--predict_data`, `--check`, ...) belong to the command line itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.config.input_formats import FORMAT_NAMES
from inference.config.run_modes import RUN_MODES


@dataclass(frozen=True)
class Flag:
    """One flag.

    Args:
        name: name, with its dashes.
        path: dotted key that the flag sets.
        kind: type of its value: str, int, float or bool (spelled `True` or `False`, as in MindFormers).
        help: one-line help text.
        group: heading in `--help`.
        choices: accepted values, if there are only a few.
        multiple: whether the flag takes several values.
        acted_on: False for flags that only training or conversion uses; they are accepted and reported as unused.
    """

    name: str
    path: str
    kind: type
    help: str
    group: str
    choices: tuple[str, ...] = ()
    multiple: bool = False
    acted_on: bool = True


def _unused(name: str, path: str, kind: type, help_text: str) -> Flag:
    return Flag(name, path, kind, help_text, "Accepted, without effect", acted_on=False)


# Names that other programs give to what these flags set.
OTHER_NAMES = {
    **dict.fromkeys(("prompt", "prompts", "input", "p"), "--predict_data"),
    **dict.fromkeys(("model_name_or_path", "model_path", "model_id", "m"), "--model"),
    "c": "--config",
    **dict.fromkeys(("output", "output_file", "o"), "--save_file"),
    **dict.fromkeys(
        ("dtype", "torch_dtype", "quantization", "quantize", "load_in_8bit", "load_in_4bit"), "--weight_dtype"
    ),
    **dict.fromkeys(("max_tokens", "n_predict", "max_gen_len", "max_output_tokens"), "--max_new_tokens"),
    **dict.fromkeys(("tensor_parallel_size", "tp", "tp_size"), "--model_parallel"),
    **dict.fromkeys(("data_parallel_size", "dp"), "--data_parallel"),
    "max_num_seqs": "--predict_batch_size",
    "device": "--device_target",
    "temp": "--temperature",
    "V": "--version",
    **dict.fromkeys(("cache_type", "kv_cache_type"), "--kv_cache_dtype"),
}

_RUN, _MODEL, _DEVICE, _TEXT, _OUTPUT = "Run", "Model", "Device", "Generation", "Output"
_EVALUATE = "Evaluation"
_GENERATION = "generation_config"

FLAGS: tuple[Flag, ...] = (
    Flag("--run_mode", "run_mode", str, "What to do.", _RUN, choices=tuple(RUN_MODES)),
    Flag("--use_parallel", "use_parallel", bool, "Run on several devices.", _RUN),
    Flag("--model_parallel", "parallel_config.model_parallel", int, "Ranks that share the model.", _RUN),
    Flag("--data_parallel", "parallel_config.data_parallel", int, "Copies of the model.", _RUN),
    Flag("--predict_batch_size", "predict_batch_size", int, "Maximum number of prompts that run together.", _RUN),
    Flag("--seed", "seed", int, "Seed of sampling, an integer from 0.", _RUN),
    Flag(
        "--input_format",
        "input.format",
        str,
        "Format of files and stdin, if the file names do not show it.",
        _RUN,
        FORMAT_NAMES,
    ),
    Flag("--prompt_column", "input.prompt_column", str, "Table column with the prompts.", _RUN),
    Flag("--id_column", "input.id_column", str, "Table column with the row names.", _RUN),
    Flag("--output_dir", "output_dir", str, "Directory for output files.", _RUN),
    Flag("--load_checkpoint", "load_checkpoint", str, "Directory or file of the weights.", _MODEL),
    Flag(
        "--load_ckpt_format",
        "load_ckpt_format",
        str,
        "Format of the weights.",
        _MODEL,
        choices=("safetensors", "ckpt"),
    ),
    Flag("--pretrained_model_dir", "pretrained_model_dir", str, "Model directory, or a model's name.", _MODEL),
    Flag("--auto_trans_ckpt", "auto_trans_ckpt", bool, "Accepted; each rank reads its own slices.", _MODEL),
    Flag("--adapter", "adapters", str, "NAME=DIRECTORY of a LoRA adapter.", _MODEL, multiple=True),
    Flag("--adapter_id", "adapter_id", str, "Adapter of all prompts, or one for each.", _MODEL, multiple=True),
    Flag("--merge_adapter", "engine.merge_adapter", str, "Adapter that is merged into the weights.", _MODEL),
    Flag("--use_past", "model.model_config.use_past", bool, "Keep keys and values of past tokens.", _MODEL),
    Flag(
        "--weight_dtype",
        "engine.weight_dtype",
        str,
        "Type of the weights in memory.",
        _MODEL,
        ("auto", "float32", "float16", "bfloat16", "int8", "int4", "int8_min", "int4_min"),
    ),
    Flag(
        "--kv_cache_dtype",
        "engine.kv_cache_dtype",
        str,
        "Type of the KV cache.",
        _MODEL,
        ("float32", "float16", "int8"),
    ),
    Flag("--random_weights", "engine.random_weights", bool, "Run with random weights.", _MODEL),
    Flag("--device_target", "context.device_target", str, "Kind of device.", _DEVICE, ("CPU", "Ascend", "GPU")),
    Flag("--device_id", "context.device_id", int, "Number of the device on this machine.", _DEVICE),
    Flag("--threads", "engine.threads", int, "CPU threads; all cores if unset.", _DEVICE),
    Flag("--mode", "context.mode", int, "0 compiles graphs, 1 runs eagerly.", _DEVICE),
    Flag("--max_new_tokens", f"{_GENERATION}.max_new_tokens", int, "Maximum number of tokens in an answer.", _TEXT),
    Flag("--max_length", f"{_GENERATION}.max_length", int, "Maximum number of tokens in prompt and answer.", _TEXT),
    Flag("--do_sample", f"{_GENERATION}.do_sample", bool, "Sample tokens instead of taking the likeliest.", _TEXT),
    Flag("--temperature", f"{_GENERATION}.temperature", float, "Randomness; 0 takes the likeliest token.", _TEXT),
    Flag("--top_k", f"{_GENERATION}.top_k", int, "Sample among the k likeliest tokens; 0 among all.", _TEXT),
    Flag("--top_p", f"{_GENERATION}.top_p", float, "Sample among tokens of this total probability.", _TEXT),
    Flag("--min_p", f"{_GENERATION}.min_p", float, "Sample among tokens this near the likeliest.", _TEXT),
    Flag(
        "--repetition_penalty",
        f"{_GENERATION}.repetition_penalty",
        float,
        "Above 1 avoids tokens that occurred.",
        _TEXT,
    ),
    Flag(
        "--num_return_sequences", f"{_GENERATION}.num_return_sequences", int, "Number of answers to each prompt.", _TEXT
    ),
    Flag("--frequency_penalty", f"{_GENERATION}.frequency_penalty", float, "Above 0 avoids frequent tokens.", _TEXT),
    Flag("--presence_penalty", f"{_GENERATION}.presence_penalty", float, "Above 0 avoids generated tokens.", _TEXT),
    Flag("--logit_bias", f"{_GENERATION}.logit_bias", str, "ID=NUMBER: added to logits.", _TEXT, multiple=True),
    Flag("--stop", f"{_GENERATION}.stop", str, "Text that ends an answer.", _TEXT, multiple=True),
    Flag("--ignore_eos", f"{_GENERATION}.ignore_eos", bool, "Continue past end-of-sequence tokens.", _TEXT),
    Flag(
        "--skip_special_tokens",
        f"{_GENERATION}.skip_special_tokens",
        bool,
        "Leave special tokens out of answers.",
        _TEXT,
    ),
    Flag("--logprobs", f"{_GENERATION}.logprobs", int, "Report this many log probabilities.", _TEXT),
    Flag(
        "--json_schema",
        f"{_GENERATION}.structured_outputs.json",
        str,
        "File with a JSON schema for the answers.",
        _TEXT,
    ),
    Flag("--regex", f"{_GENERATION}.structured_outputs.regex", str, "Regular expression for the answers.", _TEXT),
    Flag("--grammar", f"{_GENERATION}.structured_outputs.grammar", str, "Lark or GBNF grammar for the answers.", _TEXT),
    Flag("--choice", f"{_GENERATION}.structured_outputs.choice", str, "Allowed answers.", _TEXT, multiple=True),
    Flag("--chat", "processor.chat", bool, "Render prompts with the model's chat template.", _TEXT),
    Flag(
        "--chat_template_kwargs",
        "processor.chat_template_kwargs",
        str,
        "Variables of the template: {enable_thinking: false}.",
        _TEXT,
    ),
    Flag(
        "--truncate",
        "engine.truncate",
        str,
        "Side to cut a prompt that is too long.",
        _TEXT,
        ("left", "right"),
    ),
    Flag(
        "--output_format",
        "output.format",
        str,
        "Format of the answers.",
        _OUTPUT,
        ("text", "json", "mindformers"),
    ),
    Flag("--save_file", "output.save_file", str, "File for the answers.", _OUTPUT),
    Flag("--ordered", "output.ordered", bool, "Write records in the order of the prompts.", _OUTPUT),
    Flag("--max_errors", "output.max_errors", int, "Rows that may fail before the run stops.", _OUTPUT),
    Flag("--metrics_file", "output.metrics_file", str, "File for the figures of the run, as JSON.", _OUTPUT),
    Flag("--metrics_plot", "output.metrics_plot", str, "Plot of the figures; needs matplotlib.", _OUTPUT),
    Flag("--stream", "output.stream", bool, "Write text as it is generated.", _OUTPUT),
    Flag("--echo", "output.echo", bool, "Write the prompt before its answer.", _OUTPUT),
    Flag("--compare_with", "evaluate.compare_with", str, "Second model: YAML, preset or result.", _EVALUATE),
    Flag("--result_file", "evaluate.result_file", str, "File for figures and answers, as JSON.", _EVALUATE),
    Flag("--report_file", "evaluate.report_file", str, "File for tables and plots, as HTML.", _EVALUATE),
    Flag("--min_score", "evaluate.min_score", str, "NAME=VALUE: at least this, or exit 4.", _EVALUATE, multiple=True),
    Flag("--max_score", "evaluate.max_score", str, "NAME=VALUE: at most this, or exit 4.", _EVALUATE, multiple=True),
    Flag(
        "--max_drop", "evaluate.max_drop", str, "NAME=VALUE: exit 4 if surely worse by more.", _EVALUATE, multiple=True
    ),
    _unused("--src_strategy_path_or_dir", "src_strategy_path_or_dir", str, "Slicing of a distributed checkpoint."),
    _unused("--strategy_load_checkpoint", "parallel.strategy_ckpt_load_file", str, "Parallel strategy to load."),
    _unused("--transform_process_num", "transform_process_num", int, "Processes that convert a checkpoint."),
    _unused("--only_save_strategy", "only_save_strategy", bool, "Write the parallel strategy and stop."),
    _unused("--remote_save_url", "remote_save_url", str, "Cloud storage for outputs."),
    _unused("--profile", "profile", bool, "MindFormers' profiler."),
    _unused("--do_eval", "do_eval", bool, "Evaluate while training."),
    _unused("--resume_training", "resume_training", str, "Resume training."),
    _unused("--train_dataset_dir", "train_dataset.data_loader.dataset_dir", str, "Data to train on."),
    _unused("--eval_dataset_dir", "eval_dataset.data_loader.dataset_dir", str, "Data to evaluate on."),
    _unused("--epochs", "runner_config.epochs", int, "Epochs of training."),
    _unused("--batch_size", "runner_config.batch_size", int, "Rows in a step of training."),
    _unused(
        "--gradient_accumulation_steps",
        "runner_config.gradient_accumulation_steps",
        int,
        "Steps between updates.",
    ),
    _unused("--sink_mode", "runner_config.sink_mode", bool, "Feed data through the device's queue."),
    _unused("--num_samples", "train_dataset.data_loader.num_samples", int, "Rows of the training data."),
    _unused("--modal_type", "modal_type", str, "Kinds of input of a multi-modal model."),
    _unused("--register_path", "register_path", str, "Python code of further models; none is ever run."),
    _unused("--trust_remote_code", "trust_remote_code", bool, "Run a model's own code; none is ever run."),
)

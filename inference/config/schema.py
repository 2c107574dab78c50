"""The config schema: sections, keys, types, units and defaults, in MindFormers' spelling.

Knows what a complete config is; knows nothing about files or command lines. The additions to MindFormers' sections
are `engine`, `input`, `output`, `evaluate`, `validation`, `pipeline`, `serve` and `chat`, and the keys
`model.hub_id`, `model.parameters` and `processor.chat`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator
from pydantic.dataclasses import dataclass

from inference.config.generation import (
    SAMPLING_SETTINGS,
    GenerationConfig,
    GenerationSettings,
    Layers,
    merge_generation_config,
    sampling_setting,
    with_sampling,
)
from inference.config.input_formats import MAX_LINE_BYTES, FormatName
from inference.config.layer import KeyPath, Layer, lay_all
from inference.config.model_settings import ModelSettings
from inference.config.preprocess_settings import PreprocessSettings
from inference.config.print_config import yaml_of
from inference.config.run_modes import RUN_MODES
from inference.config.serve_settings import ChatSettings, ServeSettings
from inference.config.values import (
    Bytes,
    Count,
    Free,
    LargeCount,
    NamedPaths,
    NonNegative,
    OptionalText,
    Positive,
    Scores,
    Section,
    Seed,
    Spelling,
    Texts,
    one_of,
)
from inference.errors import ConfigError

_TRAINING = ("train", "finetune", "export", "predict_with_train_model")
_GRAPH_MODES = ((0, 0), (1, 1), ("GRAPH_MODE", 0), ("PYNATIVE_MODE", 1))
_SAVE_GRAPHS = ((False, 0), (True, 2), (0, 0), (1, 1), (2, 2), (3, 3))
_PARALLEL_MODES = (
    "DATA_PARALLEL",
    "SEMI_AUTO_PARALLEL",
    "AUTO_PARALLEL",
    "HYBRID_PARALLEL",
    "STAND_ALONE",
    "MANUAL_PARALLEL",
)


def _run_mode(value: Any) -> Any:
    if value in _TRAINING:
        raise ValueError(f"must be one of {', '.join(RUN_MODES)}; this project runs models and does not train them")
    if value not in RUN_MODES:
        hint = "; MindFormers' eval is evaluate here" if value == "eval" else ""
        raise ValueError(f"must be one of {', '.join(RUN_MODES)}{hint}")
    return value


def _parallel_mode(value: Any) -> Any:
    names = [*enumerate(_PARALLEL_MODES[:4]), *((name, name) for name in _PARALLEL_MODES)]
    return one_of(names, f"0 to 3, or one of {', '.join(_PARALLEL_MODES)}")(value)


class ContextSettings(Section):
    """`context`: the device and how graphs are compiled for it."""

    mode: Annotated[int, BeforeValidator(one_of(_GRAPH_MODES, "0 (GRAPH_MODE) or 1 (PYNATIVE_MODE)"))] = Field(
        0, description="0 compiles graphs, 1 runs eagerly (40 to 80 times slower on a CPU)."
    )
    device_target: Annotated[Literal["CPU", "Ascend", "GPU"], Spelling] = Field("CPU", description="Kind of device.")
    device_id: NonNegative = Field(0, description="Number of the device on this machine.")
    max_device_memory: OptionalText = Field(None, description="Maximum memory of an Ascend device, such as 58GB.")
    mempool_block_size: OptionalText = Field(None, description="Step by which an Ascend device's memory grows.")
    memory_optimize_level: Literal["O0", "O1"] | None = Field(None, description="O1 saves memory in compiling.")
    max_call_depth: Count = Field(10000, description="Deepest nesting of calls in a graph.")
    save_graphs: Annotated[int, BeforeValidator(one_of(_SAVE_GRAPHS, "true, false, or 0 to 3"))] = Field(
        0, description="How much of the compiled graphs to write out, 0 to 3."
    )
    save_graphs_path: OptionalText = Field(None, description="Directory for the graphs.")
    deterministic: Literal["ON", "OFF"] | None = Field(None, description="Deterministic kernels on Ascend.")
    runtime_num_threads: NonNegative | None = Field(None, description="Threads of MindSpore's CPU runtime.")
    enable_graph_kernel: bool | None = Field(None, description="Fuse operators into graph kernels.")
    graph_kernel_flags: OptionalText = Field(None, description="Options of graph kernels.")
    jit_level: Literal["O0", "O1", "O2"] | None = Field(None, description="Level of graph optimization.")
    jit_config: Free | None = Field(None, description="Options of just-in-time compilation.")
    infer_boost: Literal["on", "off"] | None = Field(None, description="Ascend's inference optimizations.")
    ascend_config: Free | None = Field(None, description="Options of an Ascend device, such as precision_mode.")
    affinity_cpu_list: Any = Field(None, description="CPU cores for each device.")
    affinity_config: Free | None = Field(None, description="CPU cores for each device and thread.")


class ParallelSettings(Section):
    """`parallel`: MindSpore's parallel context."""

    parallel_mode: Annotated[OptionalText, BeforeValidator(_parallel_mode)] = Field(
        None, description="MindSpore's parallel mode, as a number or a name."
    )


class ParallelConfig(Section):
    """`parallel_config`: how the model is split and copied across devices."""

    data_parallel: Count = Field(1, description="Copies of the model.")
    model_parallel: Count = Field(
        1,
        description="Devices that share each layer (tensor parallel); if unset, all devices that data_parallel leaves.",
    )
    pipeline_stage: Count = Field(1, description="Groups of layers, each on its own devices.")
    expert_parallel: Count = Field(1, description="Devices that share the experts.")


class ArchSettings(Section):
    """`model.arch`: the class that runs the model."""

    type: OptionalText = Field(None, description="Name of the architecture, such as LlamaForCausalLM.")


# A dataclass, because a pydantic model cannot have a key called model_config.
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ModelSection:
    """`model`: the model and its sizes."""

    arch: ArchSettings = field(default_factory=ArchSettings)
    model_config: ModelSettings = field(default_factory=ModelSettings)
    hub_id: OptionalText = Field(default=None, strict=True, description="Hugging Face repository of the weights.")
    parameters: LargeCount | None = Field(default=None, strict=True, description="Weights of the model, a count.")


class TokenizerSettings(Section):
    """`processor.tokenizer`: a tokenizer to use instead of the one in the model directory."""

    type: OptionalText = Field(None, description="MindFormers' tokenizer class.")
    vocab_file: OptionalText = Field(None, description="tokenizer.model, or Qwen's vocab.json.")
    tokenizer_file: OptionalText = Field(None, description="tokenizer.json.")
    merges_file: OptionalText = Field(None, description="Qwen's merges.txt.")
    checkpoint_name_or_path: OptionalText = Field(None, description="Model directory, or the name of a model.")
    unk_token: OptionalText = Field(None, description="Text of the unknown token.")
    bos_token: OptionalText = Field(None, description="Text of the token that begins a sequence.")
    eos_token: OptionalText = Field(None, description="Text of the token that ends a sequence.")
    pad_token: OptionalText = Field(None, description="Text of the token that pads short rows.")
    additional_special_tokens: Texts | None = Field(None, description="Texts of further special tokens.")
    add_bos_token: bool | None = Field(None, description="Begin each prompt with bos_token.")
    add_eos_token: bool | None = Field(None, description="End each prompt with eos_token.")
    prefix_tokens: Texts | None = Field(None, description="Texts of the tokens before each prompt, in place of bos.")
    add_special_tokens: bool | None = Field(None, description="Add the tokenizer's own special tokens.")
    chat_template: OptionalText = Field(None, description="Jinja template of a conversation.")
    model_max_length: LargeCount | None = Field(None, description="Maximum prompt length in tokens.")
    max_length: LargeCount | None = Field(None, description="The same.")


class ProcessorSettings(Section):
    """`processor`: how prompts become tokens."""

    type: OptionalText = Field(None, description="MindFormers' processor class.")
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings, description="The tokenizer.")
    chat: bool = Field(False, description="Render each prompt with the model's chat template.")
    chat_template_kwargs: Free | None = Field(
        None, description="Variables of the chat template, such as enable_thinking; a row's own variables outrank them."
    )


class TrainerSettings(Section):
    """`trainer`: MindFormers' task."""

    type: OptionalText = Field(None, description="MindFormers' trainer class.")
    model_name: OptionalText = Field(None, description="Name of the model, such as llama2_7b.")


class EngineSettings(Section):
    """`engine`: how this project runs the model."""

    backend: Literal["auto", "native", "mindformers"] = Field(
        "auto", description="Which networks run: this project's or MindFormers'."
    )
    kernels: Literal["auto", "native", "stock"] = Field(
        "auto", description="This project's CPU kernels, or MindSpore's stock operators."
    )
    weight_dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "int8", "int4", "int8_min", "int4_min"], Spelling
    ] = Field("auto", description="Type of the weights in memory.")
    kv_cache_dtype: Annotated[Literal["float32", "float16", "int8"], Spelling] = Field(
        "float32", description="Type of the KV cache."
    )
    block_size: Count = Field(16, le=4096, description="Tokens in a block of the KV cache.")
    kv_cache_memory: Bytes | None = Field(
        None, description="Memory of the KV cache: bytes, or a size such as 2GiB; sized to the work if unset."
    )
    max_batch_tokens: Count = Field(512, le=1 << 20, description="Maximum number of tokens in one step of the model.")
    max_sequences: Count = Field(64, le=1 << 16, description="Maximum number of sequences in one step of the model.")
    threads: Count | None = Field(None, le=1024, description="CPU threads; all cores if unset.")
    prefix_cache: bool = Field(True, description="Prompts with a common prefix share its part of the KV cache.")
    speculation: Literal["none", "lookup", "auto"] = Field(
        "none",
        description="Guess tokens from the row's own text and verify them in one step when that is faster (lookup, "
        "auto); answers stay the same.",
    )
    qkv_layout: Literal["stacked", "interleaved"] | None = Field(
        None,
        description="How a MindFormers checkpoint with qkv_concat joins matrices: stacked to 1.3, then interleaved.",
    )
    merge_adapter: OptionalText = Field(
        None, description="Name of the adapter that is merged into the weights as they are read."
    )
    random_weights: bool = Field(False, description="Run with random weights instead of a checkpoint.")
    truncate: Literal["left", "right"] | None = Field(
        None, description="Side to cut a prompt longer than the context; an error if unset."
    )


class InputSettings(Section):
    """`input`: how prompt files are read."""

    format: FormatName | None = Field(
        None, description="Format of files and standard input; if unset, the file's suffix decides, and stdin is txt."
    )
    prompt_column: str = Field("prompt", description="Table column with the prompts.")
    id_column: str = Field("custom_id", description="Table column with the row names, if there is one.")
    max_line_bytes: Count = Field(MAX_LINE_BYTES, description="Longest line; a longer one is a bad row.")


class OutputSettings(Section):
    """`output`: what to write, and where."""

    format: Literal["text", "json", "mindformers"] | None = Field(
        None, description="Format of the answers; json for a save file that ends in .jsonl, and text, if unset."
    )
    save_file: OptionalText = Field(
        None, description="File for the answers; text goes to standard output as well, records do not."
    )
    ordered: bool = Field(False, description="Write records in the order of the prompts, not as they finish.")
    max_errors: NonNegative | None = Field(None, description="Rows that may fail before the run stops.")
    metrics_file: OptionalText = Field(None, description="File for the figures of the run, as JSON.")
    metrics_plot: OptionalText = Field(None, description="Plot of the figures, such as a .png; needs matplotlib.")
    stream: bool | None = Field(None, description="Write text as it is generated; if unset, only on a terminal.")
    echo: bool | None = Field(
        None, description="Write the prompt before its answer, or into its record; records alone have it if unset."
    )

    @property
    def form(self) -> str:
        """The output format of answers: `format`, or if it is unset, the one that the save file's suffix implies."""
        by_name = "json" if (self.save_file or "").lower().endswith(".jsonl") else "text"
        return self.format or by_name


class EvaluateSettings(Section):
    """`evaluate`: how answers are compared with references."""

    metrics: Texts | None = Field(
        None, description="exact_match, token_f1, bleu, chrf, perplexity, latency; if unset, all that are available."
    )
    reference_key: str = Field("reference", description="Key of a row's reference, or with an s of several.")
    slice_key: str = Field("slice", description="Key of a row's slices.")
    compare_with: OptionalText = Field(
        None,
        description="A second model: a config, a preset, or the .json result of an evaluation on rows with references.",
    )
    result_file: OptionalText = Field(None, description="File for all figures and answers, as JSON.")
    report_file: OptionalText = Field(None, description="File for the page with tables and plots, as HTML.")
    bootstrap_samples: Count = Field(1000, description="Resamplings of the rows for a confidence interval.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Share of the resamplings that the interval holds."
    )
    min_score: Scores = Field(default_factory=dict, description="Scores that must be at least this, or exit code 4.")
    max_score: Scores = Field(default_factory=dict, description="Scores that must be at most this, or exit code 4.")
    max_drop: Scores = Field(
        default_factory=dict, description="How much worse than the second model a score may surely be, or exit code 4."
    )


class ValidateSettings(Section):
    """`validation`: the expectations that a set of prompts must meet."""

    label_key: OptionalText = Field(None, description="Key of JSON rows whose values are counted, such as a class.")
    baseline: Texts | None = Field(None, description="Files of prompts to compare with: how far the data has drifted.")
    min: Scores = Field(default_factory=dict, description="Figures that must be at least this, or exit code 4.")
    max: Scores = Field(default_factory=dict, description="Figures that must be at most this, or exit code 4.")
    result_file: OptionalText = Field(None, description="File for all figures, as JSON.")
    report_file: OptionalText = Field(None, description="File for the page with tables and plots, as HTML.")


class StepSettings(Section):
    """`pipeline.steps.NAME`: one model of a pipeline and its prompt."""

    config: OptionalText = Field(None, description="A model of ours: a YAML file or a preset; this config if unset.")
    options: Free = Field(default_factory=dict, description="Keys of that config to set, dotted.")
    remote: Free | None = Field(
        None, description="An OpenAI-compatible endpoint instead: url, model, key_variable, ..."
    )
    handler: OptionalText = Field(None, description="Any other Beam model handler: the dotted path of its class.")
    arguments: Free = Field(
        default_factory=dict, description="Arguments of the handler, of any kind; {object: path} is an import."
    )
    settings: Free = Field(default_factory=dict, description="Generation settings of all rows in this step.")
    after: Texts | None = Field(
        None, description="Steps whose answers this step waits for; if unset, it takes the input rows."
    )
    template: OptionalText = Field(
        None, description="Its prompt, as a Jinja template over prompt, row, answer and the steps before it."
    )
    field: OptionalText = Field(None, description="Key of the row that is given to the handler, instead of the prompt.")
    prepare: OptionalText = Field(None, description="Function that makes the handler's example, by its dotted path.")
    result: OptionalText = Field(None, description="Function that makes an answer from the handler's result.")


class PipelineSettings(Section):
    """`pipeline`: runs rows through one or more models on Apache Beam, Ray or Spark."""

    engine: Literal["beam", "ray", "spark"] = Field("beam", description="What distributes the rows.")
    address: OptionalText = Field(
        None,
        description="Address of a Ray or Spark cluster, such as spark://host:7077; the engine's own setting if unset.",
    )
    worker_cpus: Count = Field(1, description="CPUs of each worker on Ray or Spark, and threads of its models.")
    preprocess: PreprocessSettings = Field(
        default_factory=PreprocessSettings, description="What happens to rows before the models."
    )
    steps: dict[str, StepSettings] = Field(
        default_factory=dict, description="Models by name; one step with this config's own if unset."
    )
    splits: tuple[dict[str, float], ...] = Field(
        (), description="Mappings of steps to shares of 1: a row goes to one of them, by a hash of its name."
    )
    fields: Texts = Field((), description="Keys of rows that only templates and handlers use; all others are settings.")
    output: OptionalText = Field(
        None, description="Step whose answer is the row's; the first of the last steps if unset."
    )
    format: Literal["jsonl", "text", "parquet"] = Field("jsonl", description="Form of the files with answers.")
    shards: NonNegative = Field(0, description="Number of files with answers; 0 leaves it to the engine.")
    report_file: OptionalText = Field(
        None, description="Comparison of the steps, as a .html page; and as .json beside it."
    )
    checkpoint_seconds: Positive = Field(5.0, description="Seconds of work that a killed run loses at most, about.")
    runner_options: Texts | None = Field(
        None,
        description="Options of Beam's runner that Beam itself does not know; settings of Spark (spark.x=y); or "
        "resources of Ray (NPU=1).",
    )

    @field_validator("splits", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class InferenceConfig(Section):
    """The whole config: frozen and complete, with a record of where each key was set. Created by `load_config`."""

    seed: Seed | None = Field(None, description="Seed of sampling, an integer from 0.")
    run_mode: Annotated[str, BeforeValidator(_run_mode)] = Field(
        "predict",
        description=f"{', '.join(f'{mode.name} {mode.help}' for mode in RUN_MODES.values())}.",
    )
    output_dir: str = Field("./output", description="Directory for output files.")
    use_parallel: bool = Field(False, description="Run on several devices; the launcher starts a process for each.")
    load_checkpoint: OptionalText = Field(
        None, description="Directory or file of the weights; a GGUF file is a whole model."
    )
    load_ckpt_format: Literal["safetensors", "ckpt"] | None = Field(None, description="Format of the weights.")
    auto_trans_ckpt: bool = Field(
        False,
        description="Either way each rank reads its part of a whole checkpoint, or its own of rank_0, rank_1, ...",
    )
    pretrained_model_dir: OptionalText = Field(
        None, description="Hugging Face model directory, a GGUF file, or a model's name."
    )
    checkpoint_name_or_path: OptionalText = Field(None, description="Checkpoint, or the name of a model.")
    predict_batch_size: Count | None = Field(None, description="Most sequences that run together.")
    adapters: NamedPaths = Field(
        default_factory=dict, description="LoRA adapters by name: directories that PEFT saved."
    )
    adapter_id: Texts | None = Field(
        None, description="Adapter of every prompt that names none, or one for each prompt in their order."
    )
    input_data: Texts | None = Field(None, description="Prompts, or files of prompts.")
    trainer: TrainerSettings = Field(default_factory=TrainerSettings, description="MindFormers' task.")
    context: ContextSettings = Field(default_factory=ContextSettings, description="Device and compilation.")
    parallel: ParallelSettings = Field(default_factory=ParallelSettings, description="MindSpore's parallel context.")
    parallel_config: ParallelConfig = Field(default_factory=ParallelConfig, description="Who shares what.")
    model: ModelSection = Field(default_factory=ModelSection, description="Which model, and its sizes.")
    processor: ProcessorSettings = Field(default_factory=ProcessorSettings, description="Prompts to tokens.")
    generation_config: GenerationSettings = Field(
        default_factory=GenerationSettings, description="Settings of generation."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="How the model is run.")
    input: InputSettings = Field(default_factory=InputSettings, description="How files of prompts are read.")
    output: OutputSettings = Field(default_factory=OutputSettings, description="What is written.")
    evaluate: EvaluateSettings = Field(
        default_factory=EvaluateSettings, description="Answers and references (`run_mode: evaluate`)."
    )
    validation: ValidateSettings = Field(
        default_factory=ValidateSettings, description="Expectations of prompts (`run_mode: validate`)."
    )
    pipeline: PipelineSettings = Field(
        default_factory=PipelineSettings, description="Pipelines on Beam, Ray or Spark (`run_mode: pipeline`)."
    )
    serve: ServeSettings = Field(
        default_factory=ServeSettings, description="OpenAI-compatible server (`run_mode: serve`)."
    )

    chat: ChatSettings = Field(default_factory=ChatSettings, description="Chat in the terminal (`run_mode: chat`).")

    _layer: Layer = PrivateAttr(default_factory=Layer)
    _given: tuple[Layer, ...] = PrivateAttr(default=())
    _sources: tuple[str, ...] = PrivateAttr(default=())
    _unused: tuple[KeyPath, ...] = PrivateAttr(default=())

    def __eq__(self, other: object) -> bool:
        """Compares settings only; where they were set does not matter."""
        return isinstance(other, InferenceConfig) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # free-form sections are dicts

    @property
    def rows_at_once(self) -> int:
        """The maximum number of rows per step: `predict_batch_size` if it is set."""
        return self.predict_batch_size or self.engine.max_sequences

    @property
    def sources(self) -> tuple[str, ...]:
        """The files that were read; the file that the user named is the last."""
        return self._sources

    @property
    def unused_keys(self) -> list[tuple[str, str]]:
        """Known keys that have no effect, as pairs of dotted key and where it was set."""
        return [(".".join(map(str, path)), self._layer.origin(path)) for path in self._unused]

    def origin(self, path: str) -> str:
        """Returns where a dotted key was set: `file:line`, a flag, `mapping`, or `default`."""
        key = tuple(path.split("."))
        return self._layer.origin(key) if self._layer.has(key) else "default"

    def merged(self) -> dict[str, Any]:
        """Returns a copy of everything that was set, as plain values, including the keys that have no effect."""
        return copy.deepcopy(self._layer.values)

    def as_given(self) -> dict[str, Any]:
        """Returns a copy like `merged`, but with keys spelled as in the files and flags instead of normalized."""
        return lay_all(self._given).values

    def to_yaml(self) -> str:
        """Formats the merged config as YAML, each key with its origin; `load_config` loads an equal config from it."""
        return yaml_of(self, self._layer)

    def generation(self, model: Layers = None, request: Layers = None) -> GenerationConfig:
        """Merges the generation settings from all sources.

        Args:
            model: the model's own settings, from `read_generation_file`; the config overrides them.
            request: settings of one prompt or call; they override the config.

        Raises:
            ConfigError: settings of `request` are unknown or out of range, or settings are mutually exclusive.
        """
        seed = None if self.seed is None else {"seed": self.seed}
        # Several adapters mean one for each prompt.
        adapter = {"adapter_id": self.adapter_id[0]} if self.adapter_id and len(self.adapter_id) == 1 else None
        from_model_section = self.model.model_config.generation()
        sampled = {"do_sample": True} if self.sampling_flag else None
        layers = (model, seed, adapter, from_model_section, self.generation_config, sampled)
        return merge_generation_config(*layers, with_sampling(request) if isinstance(request, Mapping) else request)

    @property
    def sampling_flag(self) -> str | None:
        """The flag that turns sampling on, such as --temperature; None if do_sample alone decides.

        Settings in files, including MindFormers', keep their meaning: only flags can imply sampling. On a command line
        with such flags, do_sample counts only if the command line itself sets it.
        """
        typed = {
            name: getattr(self.generation_config, name)
            for name in ("do_sample", *SAMPLING_SETTINGS)
            if self.origin(f"generation_config.{name}").startswith("-")
        }
        name = sampling_setting(typed)
        return name and self.origin(f"generation_config.{name}")

    def check_supported(self) -> None:
        """Rejects MindFormers' settings that load but are not supported yet.

        Raises:
            ConfigError: the config asks for an adapter type or a quantization method that is not supported.
        """
        for path, key, what in _NOT_YET:
            asked = self._layer.get(path)
            value = asked.get(key) if isinstance(asked, dict) else None
            taken = QUANT_METHODS if key == "quant_method" else (SLORA,) if key == "pet_type" else ()
            if value not in (None, "", 1, *taken):
                where = f"{self.origin('.'.join(path))}: {'.'.join(path)}"
                raise ConfigError(f"{where} asks for {what} ({value}), which are not supported yet", "remove it")

    def check_adapters(self, key: str, names: Iterable[str | None], known: Iterable[str]) -> None:
        """Rejects names of unknown adapters.

        Args:
            key: key that holds the names, for the message.
            names: names to check; None and '' mean no adapter.
            known: names of the adapters that exist.

        Raises:
            ConfigError: a name is unknown; the message names the first such name.
        """
        known = list(known)
        unknown = next((name for name in names if name and name not in known), None)
        if unknown:
            raise ConfigError(
                f"{self.origin(key)}: {key} '{unknown}' is not an adapter of this run", adapters_hint(known)
            )


def adapters_hint(names: Iterable[str]) -> str:
    """Returns a hint for an unknown adapter."""
    known = ", ".join(names)
    return f"there are {known}" if known else "name it and its directory with --adapter NAME=DIRECTORY"


# Quantization methods of checkpoints that can be read.
QUANT_METHODS = ("gptq", "awq", "compressed-tensors", "fp8", "fbgemm_fp8")
_MODEL = ("model", "model_config")
# MindFormers' adapter type for adapters chosen per row: `pet_config.adapter_path` is a directory with their names.
SLORA = "slora"
_NOT_YET = (
    ((*_MODEL, "pet_config"), "pet_type", "adapters"),
    ((*_MODEL, "quantization_config"), "quant_method", "quantized weights"),
    (_MODEL, "quant", "quantized weights"),
)

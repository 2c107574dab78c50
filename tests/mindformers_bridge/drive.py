"""Drives the demo model through stock MindFormers, in a process and a directory of its own: `python drive.py DEMO`.

Writes what came of it to results.json. `run_mindformer` is what run_mindformer.py, which is not in the wheel, does with
`--register_path REGISTER_PATH --run_mode predict` and these keys.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import mindspore
from mindformers import AutoConfig, AutoModel, MindFormerConfig, Trainer, pipeline
from mindformers.core.context import build_context, set_context
from mindformers.models.llama import LlamaTokenizer
from safetensors.numpy import load_file

from inference.mindformers_bridge import REGISTER_PATH, register

DEMO = Path(sys.argv[1])
PROMPTS = ["12 + 7 =", "Translate to German: the big house"]
IDS = [[1, 1205, 1227], [1, 1212, 1240, 288, 1205]]
NAMES = json.loads(sys.argv[2])

OLD = f"""
run_mode: predict
use_parallel: False
output_dir: ./output
context: {{mode: 0, device_target: CPU}}
trainer: {{type: CausalLanguageModelingTrainer, model_name: demo}}
model:
  arch: {{type: InferenceForCausalLM}}
  model_config:
    type: InferenceModelConfig
    architectures: [LlamaForCausalLM]
    seq_length: 256
    vocab_size: 1280
    hidden_size: 192
    intermediate_size: 512
    num_layers: 4
    num_heads: 6
    n_kv_heads: 2
    rms_norm_eps: 1.0e-5
    max_position_embeddings: 512
    tie_word_embeddings: True
    bos_token_id: 1
    eos_token_id: 2
    pad_token_id: 3
    max_decode_length: 40
    checkpoint_name_or_path: {DEMO}
processor:
  type: LlamaProcessor
  tokenizer: {{type: LlamaTokenizer, vocab_file: {DEMO}/tokenizer.model, pad_token: '<|user|>'}}
"""
NEW = f"""
use_legacy: False
run_mode: predict
use_parallel: False
output_dir: ./output
load_ckpt_format: safetensors
load_checkpoint: {DEMO}
pretrained_model_dir: {DEMO}
context: {{mode: 0, device_target: CPU}}
generation_config: {{max_length: 40, do_sample: False}}
trainer: {{type: CausalLanguageModelingTrainer, model_name: demo}}
model: {{model_config: {{compute_dtype: float32, batch_size: 2, block_size: 32, num_blocks: 64}}}}
"""


def written(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def run_mindformer(text: str, **settings: Any) -> Any:
    config = MindFormerConfig(written("given.yaml", text))
    config.merge_from_dict({key.replace("__", "."): value for key, value in settings.items()})
    build_context(config)
    return Trainer(config).predict(
        predict_checkpoint=config.load_checkpoint,
        input_data=config.input_data,
        batch_size=config.predict_batch_size,
        adapter_id=config.adapter_id,
    )


def lists(rows: Any) -> list[list[int]]:
    return [[int(token) for token in row] for row in rows]


results: dict[str, Any] = {}
register()
config = AutoConfig.from_pretrained(written("demo.yaml", OLD), max_decode_length=30)
results["config"] = [type(config).__name__, config.num_layers, config.max_decode_length]
model = AutoModel.from_config(config)
results["one row"] = lists(model.generate(IDS[0], do_sample=False))
longest = max(map(len, IDS))
padded = [row + [3] * (longest - len(row)) for row in IDS]
results["batch"] = lists(model.generate(padded, max_new_tokens=12))
results["no cache"] = lists(AutoModel.from_config("demo.yaml", use_past=False).generate(padded, max_new_tokens=12))
drawn = {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.8, "max_length": 20}
results["sampled"] = [lists(model.generate(padded, seed=seed, **drawn)) for seed in (1, 1, 2)]
tokenizer = LlamaTokenizer(str(DEMO / "tokenizer.model"), pad_token="<|user|>")
generate = pipeline("text_generation", model=model, tokenizer=tokenizer)
results["pipeline"] = generate(PROMPTS, max_length=40, do_sample=False)

tensors = load_file(DEMO / "model.safetensors")
saved = []
for name, array in tensors.items():
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    saved.append({"name": name, "data": mindspore.Tensor(array)})
mindspore.save_checkpoint(saved, "demo.ckpt")
results["trainer, ckpt"] = run_mindformer(OLD, input_data=PROMPTS[0], load_checkpoint="demo.ckpt")
os.environ["REGISTER_PATH"] = str(REGISTER_PATH)
# Nothing of ours in the YAML but the key that makes MindFormers import the file in REGISTER_PATH.
stock = OLD.replace("InferenceForCausalLM", "LlamaForCausalLM").replace("InferenceModelConfig", "LlamaConfig")
results["trainer, register_path"] = run_mindformer(
    stock.replace("    architectures: [LlamaForCausalLM]\n", ""),
    input_data=PROMPTS,
    predict_batch_size=2,
    load_checkpoint=str(DEMO),
    load_ckpt_format="safetensors",
    model__model_config__auto_register="auto_register.InferenceModelConfig",
)
results["saved"] = Path("text_generation_result.txt").read_text()
try:
    run_mindformer(OLD, input_data=PROMPTS[0], model__model_config__checkpoint_name_or_path=None)
except Exception as error:
    results["no weights"] = f"{type(error).__name__}: {error}"
# In life a process has one style: build_context keeps the first.
set_context(use_legacy=False)
results["trainer, new style"] = run_mindformer(NEW, input_data=PROMPTS, predict_batch_size=2)
Path("results.json").write_text(json.dumps(results))

"""MindFormers' own example of text generation; only the import line differs.

    python examples/mindformers_style.py llama2_7b path/to/llama2_7b.ckpt

The first argument is a preset's name (`--list_models`), or a directory with a model's config.json and tokenizer; the
second a checkpoint, as .ckpt or .safetensors.
"""

import sys

from inference import AutoModel, AutoTokenizer, TextStreamer, build_context, pipeline

if len(sys.argv) != 3:
    sys.exit(__doc__)
name, checkpoint = sys.argv[1:]
inputs = ["I love Beijing, because", "LLaMA is a", "Huawei is a company that"]

# Graph mode.
build_context({"context": {"mode": 0}, "parallel": {}, "parallel_config": {}})
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModel.from_pretrained(name, checkpoint_name_or_path=checkpoint, use_past=True)

# Without a streamer: the answers when they are complete.
text_generation_pipeline = pipeline(task="text_generation", model=model, tokenizer=tokenizer)
outputs = text_generation_pipeline(inputs, max_length=512, do_sample=False, top_k=3, top_p=1)
for output in outputs:
    print(output)

# With one: the text as it comes, and then the answers as before.
streamer = TextStreamer(tokenizer)
text_generation_pipeline = pipeline(task="text_generation", model=model, tokenizer=tokenizer, streamer=streamer)
outputs = text_generation_pipeline(inputs, max_length=512, do_sample=False, top_k=3, top_p=1)
for output in outputs:
    print(output)

"""A program whose model is shared by all processes that are started for it, as MindSpore's msrun does:

    msrun --worker_num=2 --local_worker_num=2 --join=True examples/several_processes.py
    bash scripts/launcher.sh "python examples/several_processes.py" 2

Under msrun the answers are in worker_0.log, with the launcher on standard output. Without either it is one process.
"""

from inference import LLM, build_context

build_context(use_parallel=True)
llm = LLM("demo")
# All processes come here, and one goes on: the others compute their part of the model as long as it has one.
for completion in llm.generate("12 + 7 ="):
    print(completion.prompt + completion.text)

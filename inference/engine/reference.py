"""The reference loop: one prompt, every token recomputed at every step. The engine must give the same answers."""

from __future__ import annotations

from inference.engine.request import Request
from inference.engine.sampler import choose
from inference.models.runner import StepModel
from inference.models.step import SequenceStep, StepBatch


def generate(model: StepModel, request: Request) -> list[int]:
    """Returns the answer's token ids, including the one that ends it. Uses the cache only within a step."""
    generation = request.generation
    blocks = range(1, model.num_blocks)
    model.blocks.forget()
    while True:
        tokens = [*request.prompt_ids, *request.output_ids]
        batch = StepBatch.build([SequenceStep(tokens, 0, blocks)], model.block_size)
        request.append(choose(model.step(batch).logits[0], request))
        ended = request.output_ids[-1] in generation.eos_token_id and not generation.ignore_eos
        if ended or len(request.output_ids) == request.max_new_tokens:
            return request.output_ids

"""Ray Data: answers the prompts of a Dataset with this project's models.

    import ray.data
    from inference.ray import AnswerBatches

    rows = ray.data.read_json("prompts/")
    answers = rows.map_batches(AnswerBatches, fn_constructor_args=["demo"], compute=ray.data.ActorPoolStrategy(size=2))

Importing this package does not import ray.
"""

from inference.ray.answer_batches import AnswerBatches

__all__ = ["AnswerBatches"]

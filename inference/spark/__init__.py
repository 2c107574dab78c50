"""Spark: answers the prompts of a DataFrame with this project's models.

    from inference.spark import answer

    answers = answer(spark.read.json("prompts/"), "demo", settings={"max_new_tokens": 100})
    answers.write.parquet("answers/")

Importing this package does not import pyspark.
"""

from inference.spark.answer import answer

__all__ = ["answer"]

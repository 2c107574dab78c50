"""A Spark DataFrame gets the answers of one process, as columns; on `local[2]`, so with two Python workers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

pyspark = pytest.importorskip("pyspark", reason="needs Spark: pip install 'mindspore-inference[spark]'")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("Spark needs Java 17 or 21", allow_module_level=True)

from inference.api.llm import LLM  # noqa: E402
from inference.errors import ConfigError, InputError  # noqa: E402
from inference.spark import answer  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = (
            pyspark.sql.SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", "5")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("ERROR")
        yield session
        session.stop()


@pytest.mark.slow
def test_each_row_once_with_the_texts_of_one_process(spark):
    prompts = [f"{n} + {n + 1} =" for n in range(15)] + [""]
    rows = spark.createDataFrame(list(enumerate(prompts)), "number int, prompt string").repartition(2)
    found = sorted(answer(rows, "demo", {"max_new_tokens": 8}).collect(), key=lambda row: row.number)
    expected = [result.text for result in LLM("demo").generate(prompts[:-1], max_new_tokens=8)]
    assert [row.text for row in found] == [*expected, None]
    assert found[-1].error.startswith("bad_row: the row: the prompt is empty") and found[0].error is None
    assert found[0].completion_tokens > 0 and found[0].finish_reason == "stop"
    assert found[0].asDict().keys() >= {"number", "prompt", "prompt_tokens", "total_seconds", "model"}


@pytest.mark.slow
def test_messages_and_a_column_of_another_name(spark):
    chat = [[{"role": "user", "content": "What is 2 + 3?"}]]
    rows = spark.createDataFrame([chat], "messages array<struct<role: string, content: string>>")
    assert [row.text for row in answer(rows, "demo").collect()] == ["5"]
    rows = spark.createDataFrame([("12 + 7 =",)], "question string")
    assert [row.text for row in answer(rows, "demo", {"max_new_tokens": 8}, "question").collect()] == [" 19"]


def test_mistakes_are_found_before_spark_starts_a_task(spark):
    with pytest.raises(InputError, match="no column 'prompt' and no column 'messages'; known: x"):
        answer(spark.createDataFrame([(1,)], "x int"), "demo")
    with pytest.raises(InputError, match="already has a column 'text'"):
        answer(spark.createDataFrame([("a", "b")], "prompt string, text string"), "demo")
    with pytest.raises(ConfigError, match="temprature"):
        answer(spark.createDataFrame([("a",)], "prompt string"), "demo", {"temprature": 1})

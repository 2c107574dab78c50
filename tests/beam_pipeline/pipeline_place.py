"""Pipelines in this process, so that Beam and MindSpore are imported once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.beam.pipeline.run import run_pipeline
from inference.config import load_config
from inference.config.presets import find_preset


@dataclass
class Place:
    """A directory, and pipelines in it.

    Attributes:
        config: keys of the config beside the demo model's.
    """

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, *rows: Any) -> Path:
        """A .jsonl file of rows; texts are lines as they are."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return path

    def run(
        self,
        *values: str,
        options: tuple[str, ...] = (),
        out: str = "out",
        pipeline: Any = None,
        max_errors: int | None = None,
        **how: Any,
    ) -> int:
        """Runs a pipeline over files; the exit code."""
        layers: dict[str, Any] = {**self.config, "run_mode": "pipeline"}
        layers["output"] = {"save_file": str(self.directory / out), "max_errors": max_errors}
        if pipeline is not None:
            layers["pipeline"] = pipeline
        config = load_config(demo_with(layers))
        return run_pipeline(config, [str(self.directory / value) for value in values], options, **how)

    def records(self, pattern: str = "out/answers-*.jsonl") -> dict[str, dict[str, Any]]:
        """Records of all files, by name; each name is there once."""
        lines = [line for path in self.directory.glob(pattern) for line in path.read_text().splitlines()]
        records = [json.loads(line) for line in lines]
        assert len({record["custom_id"] for record in records}) == len(records)
        return {record["custom_id"]: record for record in records}

    def failures(self, pattern: str = "out/failed-*.jsonl") -> list[dict[str, Any]]:
        lines = [line for path in self.directory.glob(pattern) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def texts(self) -> dict[str, str]:
        return {name: record["text"] for name, record in self.records().items()}


def demo_with(layers: dict[str, Any]) -> dict[str, Any]:
    """The demo's config with further keys; few new tokens, so that tests are short."""
    from inference.config.yaml_file import read_yaml

    preset = read_yaml(find_preset("demo"), "demo").values
    base = {key: value for key, value in preset.items() if key != "base_config"}
    return {**base, "generation_config": {"max_new_tokens": 12}, **layers}

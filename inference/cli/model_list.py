"""The table of `--list_models`: each preset with its size, context, memory and whether its weights are on this machine.

Reads presets and looks for files; loads no weights and asks no hub.
"""

from __future__ import annotations

from collections.abc import Iterator

from inference.config import load_config
from inference.config.locate import DEMOS, locate_model, place_on_disk
from inference.config.presets import Preset, list_presets
from inference.files.read import read_json_object
from inference.models.architecture.registry import model_config_from
from inference.models.architecture.t5_config import AnyConfig

HEADER = ("preset", "weights", "context", "16 bits", "8 bits", "4 bits", "on disk", "Hugging Face")
FOOTER = "Weights in memory, with --weight_dtype float16, int8 or int4. The KV cache and the program come on top."
# Bytes of a weight. Each block of 32 int8 or int4 weights also has a 16-bit scale; see inference/kernels/formats.py.
FLOAT16, INT8, INT4 = 2.0, 1 + 2 / 32, 0.5 + 2 / 32


def model_list() -> str:
    """Returns the table, with its header and footer."""
    rows = [HEADER, *_rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    # Numbers stand on the right.
    aligned = [
        "  ".join(
            cell.rjust(width) if 0 < column < 6 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*aligned, "", FOOTER])


def _rows() -> Iterator[tuple[str, ...]]:
    for preset in list_presets():
        model = sizes_of(preset)
        number = preset.parameters or model.num_parameters
        yield (
            preset.name,
            _amount(number, (("B", 1e9), ("M", 1e6))),
            f"{model.context_length:,}",
            *(_amount(size, (("GB", 1e9), ("MB", 1e6))) for size in memory_of(number, model)),
            place_on_disk(preset.name, preset.hub_id) or "-",
            preset.hub_id or "-",
        )


def sizes_of(preset: Preset) -> AnyConfig:
    """Returns the sizes of a preset's model."""
    config = load_config(preset.path)
    values = config.model.model_config.given_architecture()
    if not values and preset.name in DEMOS:
        values = read_json_object(locate_model(preset.name) / "config.json")
    return model_config_from(values, str(preset.path), config.model.arch.type)


def memory_of(parameters: int, model: AnyConfig) -> tuple[float, float, float]:
    """Returns about how many bytes the weights take in memory at 16, 8 and 4 bits; at 4 bits, the embedding and the
    output head keep 8.
    """
    ends = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    return FLOAT16 * parameters, INT8 * parameters, INT4 * (parameters - ends) + INT8 * ends


def _amount(number: float, units: tuple[tuple[str, float], ...]) -> str:
    unit, size = next((unit for unit in units if number >= unit[1]), units[-1])
    return f"{number / size:,.1f} {unit}"

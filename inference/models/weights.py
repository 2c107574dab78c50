"""Fills a network's parameters from a checkpoint, tensor by tensor.

Knows names and shapes; the parameters are plain numpy arrays here, so that nothing below needs mindspore. Peak memory
is the parameters themselves: every tensor goes from the mapped file into its place without a copy between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from inference.errors import CheckpointError
from inference.models.checkpoint import Checkpoint, StoredTensor
from inference.models.config import ModelConfig
from inference.models.parameters import DERIVED, HEAD, TensorPlace, hugging_face_name, tensor_places

SHOWN = 5
Pairs = list[tuple[StoredTensor, TensorPlace]]


def fit(checkpoint: Checkpoint, config: ModelConfig, path: Path) -> Pairs:
    """Pairs every tensor that the model needs with the stored one.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; all are counted and the first few listed.
    """
    stored = {hugging_face_name(name): tensor for name, tensor in checkpoint.items() if not DERIVED.search(name)}
    places = tensor_places(config)
    known = {place.name for place in places}
    if config.tie_embeddings:
        # Some exporters write the tied head a second time; it is the embedding.
        known.add(HEAD)
    missing = [place.name for place in places if place.name not in stored]
    unexpected = [name for name in stored if name not in known]
    misshapen = [
        f"{place.name} is {list(stored[place.name].shape)}, the config says {list(place.shape)}"
        for place in places
        if place.name in stored and stored[place.name].shape != place.shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the config: tensors {'; '.join(problems)}")
    return [(stored[place.name], place) for place in places]


def load(
    pairs: Pairs,
    parameters: Mapping[str, np.ndarray],
    progress: Callable[[StoredTensor], None] | None = None,
) -> None:
    """Copies every stored tensor into the rows of its parameter.

    Args:
        parameters: writable float32 arrays by parameter name, shaped as `parameter_shapes` says.
        progress: called after each tensor.
    """
    for tensor, place in pairs:
        rows = slice(place.first_row, place.first_row + place.shape[0])
        tensor.read_into(parameters[place.parameter][rows])
        if progress:
            progress(tensor)


def fill_random(parameters: Mapping[str, np.ndarray], seed: int = 0, scale: float = 0.02) -> None:
    """Random weights, for trying a config out without a checkpoint: norms are 1, biases 0, matrices normal."""
    generator = np.random.default_rng(seed)
    for name, array in parameters.items():
        if name.endswith("bias"):
            array.fill(0)
        elif array.ndim == 1:
            array.fill(1)
        else:
            for row in array:
                row[:] = generator.standard_normal(row.size, dtype=np.float32) * np.float32(scale)

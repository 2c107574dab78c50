"""The format of every parameter in memory: one for all matrices, or one per matrix.

Knows names, shapes and stored tensors; reads no weights, except to measure a rounding. A GGUF file of type Q4_K_M, for
example, has tensors of several types. Each of its matrices gets the narrowest of our formats that holds it without
another rounding, so that a token reads about as many bytes as the file has.
"""

from __future__ import annotations

import math
from collections import Counter

from inference.checkpoint.quantized_tensor import HELD_BY, QuantizedTensor, rounding_error
from inference.checkpoint.tensor import ITEM_SIZES, StoredTensor
from inference.kernels.formats import Format, MixedFormat, WeightFormat, by_size
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights.lora import MergedTensor
from inference.models.weights.parameters import (
    DISTANCES,
    EMBEDDING,
    HEAD,
    POSITIONS,
    ROUTER,
    SHARED,
    TensorPlace,
    parameter_shapes,
)
from inference.models.weights.sharding import PACKED, Pairs

# Matrices whose rounding affects every token of an answer.
ENDS = (EMBEDDING, POSITIONS, SHARED, HEAD)
# Formats that are fine enough for a second rounding: it changes the weights by a tenth of a rounding to 4 bits.
_ROOMY = (Format.INT8, Format.INT8_MIN)


def formats_of(config: AnyConfig, weight_format: WeightFormat) -> dict[str, Format]:
    """Returns the format of every parameter: vectors are float32; matrices have the model's format or their own.

    Embeddings and output head are int8 in an int4 model, because their rounding affects every token of the answer. A
    router is never rounded, because rounding may send a token to another expert.
    """
    shapes = parameter_shapes(config)
    if isinstance(weight_format, MixedFormat):
        return {name: weight_format.by_parameter.get(name, Format.FLOAT32) for name in shapes}
    return {name: _uniform(name, shape, weight_format) for name, shape in shapes.items()}


def _is_exact(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is never rounded. T5's bias by distance is small, and read only once."""
    return len(shape) == 1 or name.endswith((ROUTER, DISTANCES))


def _uniform(name: str, shape: tuple[int, ...], weight_format: Format) -> Format:
    if _is_exact(name, shape):
        return Format.FLOAT32
    return Format.INT8 if name in ENDS and weight_format.is_four_bits else weight_format


def memory_layout(shape: tuple[int, ...], memory: Format | None) -> tuple[str, tuple[int, ...]]:
    """Returns (type, shape) of a parameter in memory: packed in `memory` for matrices, else plain float32."""
    if memory is None or len(shape) == 1:
        return Format.FLOAT32.value, shape
    return PACKED, memory.shape(*shape)


def layout_bytes(layout: tuple[str, tuple[int, ...]]) -> int:
    """Returns the number of bytes of a parameter of this (type, shape)."""
    dtype, shape = layout
    return ITEM_SIZES[dtype] * math.prod(shape)


def weight_bytes(config: AnyConfig, weight_format: WeightFormat | None) -> int:
    """Returns the bytes of the parameters in memory, packed in a format; None stands for plain float32 rows."""
    formats = formats_of(config, weight_format or Format.FLOAT32)
    return sum(
        layout_bytes(memory_layout(shape, formats[name] if weight_format else None))
        for name, shape in parameter_shapes(config).items()
    )


def quantized_tensors(pairs: Pairs | None) -> list[QuantizedTensor]:
    """Returns a checkpoint's quantized tensors of the layers, without embeddings and head."""
    return [
        tensor for tensor, place in pairs or [] if isinstance(tensor, QuantizedTensor) and place.parameter not in ENDS
    ]


def stored_format(pairs: Pairs | None) -> WeightFormat:
    """Returns a checkpoint's format for `engine.weight_dtype: auto`.

    If layers are quantized, each matrix has the narrowest format that holds it unchanged. Otherwise all have the type
    of most of the checkpoint's bytes. Random weights are float32.
    """
    if quantized_tensors(pairs):
        return _formats_of_quantized(pairs or [])
    sizes = {"float32": 1, "float16": 0, "bfloat16": 0}
    for tensor, _ in pairs or []:
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += layout_bytes((tensor.dtype, tensor.shape))
    return Format(max(sizes, key=lambda name: sizes[name]))


def _formats_of_quantized(pairs: Pairs) -> WeightFormat:
    """Returns the formats of a quantized checkpoint's matrices; a plain `Format` if all are the same."""
    parts: dict[str, Pairs] = {}
    for pair in pairs:
        parts.setdefault(pair[1].parameter, []).append(pair)
    shapes = {name: of[0][1].shape for name, of in parts.items()}
    found = {name: _narrowest(name, of) for name, of in parts.items() if not _is_exact(name, shapes[name])}
    for form in by_size({form for name, form in found.items() if name not in ENDS}):
        if all(found[name] is _uniform(name, shapes[name], form) for name in found):
            return form
    return MixedFormat(found)


def _narrowest(parameter: str, parts: Pairs) -> Format:
    """Returns the narrowest format that holds all tensors of a parameter, which are fused into one matrix, unchanged.

    A tensor that no format holds is rounded to 8 bits. One that is not quantized keeps its type, except embeddings and
    head, which are read for every token and lose little with 8 bits.
    """
    forms = {_form(tensor, place) for tensor, place in parts}
    floats = {form for form in forms if form is not None and not form.quantized}
    if floats and parameter not in ENDS:
        return by_size(floats)[-1]
    is_rounded = None in forms or bool(floats)
    wanted = forms - floats - {None}
    fitting = [form for form, held in HELD_BY.items() if wanted.issubset(held) and (form in _ROOMY or not is_rounded)]
    return by_size(fitting)[0]


def _form(tensor: StoredTensor, place: TensorPlace) -> Format | None:
    """Returns the narrowest format that holds a tensor in its place unchanged; None if it must be rounded."""
    while isinstance(tensor, MergedTensor):
        if isinstance(tensor.whole, QuantizedTensor):
            return None
        tensor = tensor.whole
    if isinstance(tensor, QuantizedTensor):
        return tensor.form if place.keeps_rows else None
    return Format(tensor.dtype) if tensor.dtype in ("float16", "bfloat16") else Format.FLOAT32


def describe_quantized(pairs: Pairs | None, chosen: WeightFormat) -> str | None:
    """Returns a line for the user: how a checkpoint is quantized, what it is converted to, and the rounding error.

    None if its layers are not quantized.
    """
    if not quantized_tensors(pairs):
        return None
    found = [(tensor, place) for tensor, place in pairs or [] if isinstance(tensor, QuantizedTensor)]
    said = f"quantized checkpoint ({', '.join(sorted({tensor.scheme for tensor, _ in found}))}): "
    if not chosen.quantized:
        return said + f"dequantized to {chosen.value}, as engine.weight_dtype says"
    formats = {place.parameter: _format_in(chosen, place) for _, place in pairs or []}
    again = [
        (tensor, formats[place.parameter])
        for tensor, place in found
        if not (tensor.is_held_by(formats[place.parameter]) and place.keeps_rows)
    ]
    if isinstance(chosen, MixedFormat):
        said += f"kept as {shares(pairs, chosen)}"
        return said + (f"; {_rounded(again, len(found))}" if again else ", without another rounding")
    if not again:
        wide = chosen is Format.INT8 and any(tensor.form is Format.INT8 for tensor, _ in found)
        four = wide and any("4 bit" in tensor.scheme for tensor, _ in found)
        why = ", because int4 here has no zero points" if four else ""
        return said + f"taken over as {chosen.value} without another rounding{why}"
    costs = {form: rounding_error(again[0][0], form) for form in (Format.INT4, Format.INT8, Format.BFLOAT16)}
    others = ", ".join(f"{form.value} by {cost:.2%}" for form, cost in costs.items() if form is not again[0][1])
    return said + f"{_rounded(again, len(found))}; others would: {others}"


def _format_in(chosen: WeightFormat, place: TensorPlace) -> Format:
    if isinstance(chosen, MixedFormat):
        return chosen.by_parameter.get(place.parameter, Format.FLOAT32)
    return _uniform(place.parameter, place.shape, chosen)


def _rounded(again: list[tuple[QuantizedTensor, Format]], count: int) -> str:
    """Returns the tensors that are rounded again, and the rounding error of the first of them."""
    tensor, form = again[0]
    to = "+".join(item.value for item in by_size({form for _, form in again}))
    return (
        f"{len(again)} of {count} tensors are rounded again to {to}, which moves the weights of {tensor.name} by "
        f"{rounding_error(tensor, form):.2%} (rms)"
    )


def shares(pairs: Pairs | None, chosen: WeightFormat) -> str:
    """Returns the share of each format in a checkpoint's matrices, and the average bits per weight."""
    counts: Counter[Format] = Counter()
    size = 0
    for _, place in pairs or []:
        if len(place.shape) > 1:
            form = _format_in(chosen, place)
            counts[form] += math.prod(place.shape)
            size += layout_bytes(memory_layout(place.shape, form))
    total = counts.total()
    parts = ", ".join(f"{form.value} {count / total:.0%}" for form, count in counts.most_common())
    return f"{parts}: {8 * size / total:.1f} bits a weight"

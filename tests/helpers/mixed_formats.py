"""A format for each matrix of a model, as in checkpoints with several types."""

from __future__ import annotations

from itertools import cycle

from inference.kernels.formats import Format, MixedFormat
from inference.models.architecture.t5_config import AnyConfig
from inference.models.weights.parameters import DISTANCES, ROUTER, parameter_shapes

FORMS = (Format.INT4_MIN, Format.INT8, Format.BFLOAT16, Format.INT8_MIN, Format.INT4)


def mixed_format(config: AnyConfig) -> MixedFormat:
    """Assign every format in turn. Routers and T5's distance bias are never rounded and stay float32."""
    exact = (ROUTER, DISTANCES)
    names = [name for name, shape in parameter_shapes(config).items() if len(shape) > 1 and not name.endswith(exact)]
    return MixedFormat(dict(zip(names, cycle(FORMS), strict=False)))

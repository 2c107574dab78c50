"""The native experts sublayer against plain numpy, for every weight format: who is chosen, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from examples import examples
from inference.kernels import library
from inference.kernels.build import KernelBuildError, library_path
from inference.kernels.formats import Format, pack, whole_panels
from inference.kernels.shapes import ExpertsShape, Routing
from inference.kernels.weight import Weight

if TYPE_CHECKING:
    from inference.kernels.native import ExpertsSublayer

try:
    library_path()
except KernelBuildError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("graph_mode")
EPS = 1e-5
# What a choice must differ by for plain numpy to make the same one.
CLEAR = 1e-4


@dataclass
class Model:
    """Weights as matrices, and the native sublayer that is made of them."""

    shape: ExpertsShape
    weight_format: Format
    values: dict[str, np.ndarray]

    @classmethod
    def random(cls, shape: ExpertsShape, weight_format: Format, corrected: bool, seed: int) -> Model:
        random, routing = np.random.default_rng(seed), shape.routing
        sizes = {
            "router": (routing.experts + shape.shared_gate, shape.hidden),
            "gate_up": (routing.experts, 2, shape.width, shape.hidden),
            "down": (routing.experts, shape.hidden, shape.width),
        }
        if shape.shared_width:
            sizes["shared_gate_up"] = (1, 2, shape.shared_width, shape.hidden)
            sizes["shared_down"] = (1, shape.hidden, shape.shared_width)
        values = {name: random.standard_normal(size, np.float32) * size[-1] ** -0.5 for name, size in sizes.items()}
        values["router"] *= 3
        values["norm"] = random.standard_normal(shape.hidden, np.float32)
        if corrected:
            values["correction"] = random.standard_normal(routing.experts, np.float32)
        return cls(shape, weight_format, values)

    def packed(self) -> dict[str, Weight]:
        weights = {}
        for name, values in self.values.items():
            if values.ndim == 1:
                weights[name] = Weight(values, Format.FLOAT32)
            elif values.ndim == 2:
                weights[name] = Weight(pack(values, Format.FLOAT32), Format.FLOAT32)
            else:
                weights[name] = Weight(pack(with_room(values), self.weight_format), self.weight_format)
        return weights

    def sublayer(self) -> ExpertsSublayer:
        from inference.kernels.native import ExpertsSublayer

        return ExpertsSublayer(self.shape, self.packed())

    def run(self, x: np.ndarray) -> np.ndarray:
        return run(self.sublayer(), x)

    def linear(self, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        """With the rounding that the format has; tested by itself in test_native."""
        return library.linear(pack(weight, self.weight_format), self.weight_format, len(weight), x)

    def expert(self, name: str, index: int, x: np.ndarray) -> np.ndarray:
        gate, up = (self.linear(weight, x) for weight in self.values[f"{name}gate_up"][index])
        return self.linear(self.values[f"{name}down"][index], gate / (1 + np.exp(-gate)) * up)

    def expected(self, x: np.ndarray) -> np.ndarray:
        normed = library.rms_norm(x, self.values["norm"], EPS)
        logits = normed.astype(np.float64) @ self.values["router"].T
        out = x.astype(np.float64)
        for t, row in enumerate(logits):
            for expert, weight in self.route(row[: self.shape.routing.experts]).items():
                out[t] += weight * self.expert("", expert, normed[t : t + 1])[0]
            if self.shape.shared_width:
                gate = 1 / (1 + np.exp(-row[-1])) if self.shape.shared_gate else 1
                out[t] += gate * self.expert("shared_", 0, normed[t : t + 1])[0]
        return out

    def route(self, logits: np.ndarray) -> dict[int, float]:
        """The chosen experts and their weights (DeepSeek-V3, arXiv 2412.19437, eq. 13 to 16)."""
        routing = self.shape.routing
        exponentials = np.exp(logits - logits.max())
        scores = 1 / (1 + np.exp(-logits)) if routing.scoring == "sigmoid" else exponentials / exponentials.sum()
        choice = scores + self.values.get("correction", 0)
        groups = choice.reshape(routing.groups, -1)
        group_scores = np.sort(groups, axis=1)[:, -routing.group_best :].sum(axis=1)
        is_open = np.zeros(routing.groups, bool)
        is_open[best(group_scores, routing.chosen_groups)] = True
        choice = np.where(is_open[:, None], groups, -np.inf).reshape(-1)
        chosen = best(choice, routing.chosen)
        total = scores[chosen].sum() if routing.normalize else 1
        return {int(expert): scores[expert] / total * routing.scale for expert in chosen}


def run(sublayer: ExpertsSublayer, x: np.ndarray) -> np.ndarray:
    return library.sublayer(sublayer.record, x)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(-scores)
    if count < len(scores) and scores[order[count - 1]] - scores[order[count]] < CLEAR:
        reject()
    return order[:count]


def with_room(experts: np.ndarray) -> np.ndarray:
    """[experts, ..., rows, columns] -> [experts * ... * room, columns]."""
    rows, columns = experts.shape[-2:]
    room = np.full((*experts.shape[:-2], whole_panels(rows), columns), 7.0, np.float32)
    room[..., :rows, :] = experts
    return room.reshape(-1, columns)


@st.composite
def models(draw: st.DrawFn) -> Model:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_group = draw(st.integers(2 if groups > 1 else 1, 4))
    open_groups = draw(st.integers(1, groups))
    routing = Routing(
        experts=groups * in_group,
        chosen=draw(st.integers(1, open_groups * in_group)),
        scoring=draw(st.sampled_from(["softmax", "sigmoid"])),
        normalize=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        groups=groups,
        chosen_groups=open_groups,
        group_best=draw(st.integers(1, 2 if groups > 1 else 1)),
    )
    shared = draw(st.sampled_from([0, 5, 32]))
    gate = shared > 0 and draw(st.booleans())
    shape = ExpertsShape(draw(st.integers(1, 70)), draw(st.integers(1, 50)), shared, gate, EPS, routing)
    return Model.random(shape, draw(st.sampled_from(Format)), draw(st.booleans()), draw(st.integers(0, 999)))


@examples(60)
@given(models(), st.integers(1, 9), st.integers(0, 999))
def test_answers(model: Model, tokens: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((tokens, model.shape.hidden), np.float32)
    expected = model.expected(x)
    error = np.abs(model.run(x) - expected).max() / np.abs(expected).max()
    # Where a value lies on the border of two int8 values, either is right.
    assert error < (2e-2 if model.weight_format.quantized else 2e-5)


@examples(40)
@given(models(), st.integers(2, 40), st.integers(0, 999))
def test_a_token_does_not_depend_on_its_neighbors(model: Model, tokens: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((tokens, model.shape.hidden), np.float32)
    sublayer = model.sublayer()
    assert np.array_equal(run(sublayer, x), np.concatenate([run(sublayer, token[None]) for token in x]))


@pytest.mark.parametrize("threads", [1, 3])
def test_only_the_chosen_experts_are_computed(threads: int) -> None:
    """The weights of the other experts are NaN, which would show."""
    shape = ExpertsShape(32, 24, 0, False, EPS, Routing(experts=16, chosen=2))
    model = Model.random(shape, Format.FLOAT32, False, 1)
    x = np.random.default_rng(2).standard_normal((3, 32), np.float32)
    normed = library.rms_norm(x, model.values["norm"], EPS)
    chosen = {expert for row in normed @ model.values["router"].T for expert in model.route(row)}
    expected = model.run(x)
    unused = [expert for expert in range(16) if expert not in chosen]
    assert len(unused) >= 10
    model.values["gate_up"][unused], model.values["down"][unused] = np.nan, np.nan
    library.set_threads(threads)
    assert np.array_equal(model.run(x), expected) and np.isfinite(expected).all()
    library.set_threads(None)


def test_nan_stays_in_its_row() -> None:
    routing = Routing(experts=6, chosen=2, scoring="sigmoid", groups=3, chosen_groups=2, group_best=2)
    model = Model.random(ExpertsShape(20, 12, 8, False, EPS, routing), Format.INT8, True, 3)
    x = np.random.default_rng(4).standard_normal((5, 20), np.float32)
    clean = model.run(x)
    x[2, 3] = np.nan
    got = model.run(x)
    assert np.isnan(got[2]).all() and np.array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))

"""`GenerativeModel` on golden models: `generate`, how much cache there is, and what `answer` does with a streamer."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from inference.config import GenerationConfig, InferenceConfig, load_config
from inference.engine import reference
from inference.engine.metrics import RunMetrics
from inference.engine.sampler import seed_of
from inference.errors import ConfigError, InferenceError, InputError
from inference.generation import build, cache_size
from inference.generation.cache_size import longest_row, num_blocks, positions_needed
from inference.generation.model import GenerativeModel
from inference.generation.streamers import TextIteratorStreamer
from inference.generation.text import Encoder
from inference.inputs.prompts import Prompt
from inference.kernels.formats import Format
from inference.models.source import resolve
from inference.tokenizer import load_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
SPM = GOLDENS / "tokenizers" / "spm"


def config_of(name: str, **sections) -> InferenceConfig:
    return load_config({"pretrained_model_dir": str(GOLDENS / name), **sections})


class Golden:
    """A golden model, loaded as the API loads it, and what transformers says it answers."""

    def __init__(self, name: str):
        self.model = GenerativeModel.from_config(config_of(name), say=print)
        golden = np.load(GOLDENS / name / "golden.npz")
        count = len(golden["lengths"])
        self.prompts = [golden[f"prompt_{i}"].tolist() for i in range(count)]
        self.greedy = [golden[f"greedy_{i}"].tolist() for i in range(count)]


@pytest.fixture(scope="module", params=["llama31", "mistral_window", "qwen3"])
def golden(request: pytest.FixtureRequest, graph_mode: None) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def llama(graph_mode: None) -> Golden:
    return Golden("llama2_gqa")


GREEDY = {"do_sample": False, "max_new_tokens": 64, "ignore_eos": True}


class TestGenerate:
    @pytest.mark.parametrize("use_past", [True, False])
    def test_all_prompts_at_once(self, golden: Golden, use_past: bool) -> None:
        answers = golden.model.generate(golden.prompts, **GREEDY, use_past=use_past)
        assert answers == [prompt + greedy for prompt, greedy in zip(golden.prompts, golden.greedy, strict=True)]

    def test_the_reference_loop_gives_the_same_answers(self, golden: Golden) -> None:
        model = golden.model
        settings = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 3, "max_new_tokens": 12}
        generation = model.generation_config.updated(**settings)
        encoder = Encoder(None, 128, model.config.context_length, generation)
        encoded = [encoder.encode(i, Prompt("0", "0", token_ids=tuple(ids))) for i, ids in enumerate(golden.prompts)]
        expected = []
        for source in encoded:
            request = source.request(model.config.context_length)
            request.seed = seed_of(3, source.row, 0)
            expected.append(source.ids + reference.generate(model.runner, request))
        assert model.generate(golden.prompts, **settings) == expected

    def test_forms_of_input(self, llama: Golden) -> None:
        import mindspore

        prompt, settings = llama.prompts[2], {"max_new_tokens": 3, "do_sample": False}
        expected = llama.model.generate([prompt], **settings)
        tensor = mindspore.Tensor(np.array([prompt], np.int32))
        for given in (prompt, tuple(prompt), np.array(prompt), np.array([prompt]), tensor, {"input_ids": [prompt]}):
            assert llama.model.generate(given, **settings) == expected
        assert llama.model.generate([np.array(prompt)], **settings) == expected

    def test_its_own_settings_count(self, llama: Golden) -> None:
        own = llama.model.generation_config
        assert own.eos_token_id == (2,) and own.bos_token_id == 1
        short = GenerationConfig(max_new_tokens=2, ignore_eos=True)
        assert len(llama.model.generate([5], short)[0]) == 3
        assert len(llama.model.generate([5], short, max_new_tokens=4)[0]) == 5
        assert llama.model.generation_config is own

    @pytest.mark.parametrize(
        ("ids", "settings", "error", "message"),
        [
            ([[]], {}, InputError, "row 0: the prompt has no tokens"),
            ([], {}, InputError, "prompt"),
            ([[5], []], {}, InputError, "row 1: the prompt has no tokens"),
            ([[128]], {}, InputError, "row 0: token id 128 is outside the vocabulary of 128"),
            ([[-1]], {}, InputError, "row 0: token id -1 is outside the vocabulary"),
            ([[1] * 256], {}, InputError, "row 0: the prompt has 256 tokens, at most 255"),
            ([[1]], {"max_new_token": 3}, ConfigError, "did you mean 'max_new_tokens'"),
            ([[1]], {"stop": ["x"]}, InputError, "stop strings need a tokenizer"),
        ],
    )
    def test_invalid_input_is_rejected(
        self, llama: Golden, ids: list, settings: dict, error: type, message: str
    ) -> None:
        with pytest.raises(error, match=message):
            llama.model.generate(ids, **settings)

    def test_a_streamer_gets_every_token(self, llama: Golden) -> None:
        class Recorder:
            def __init__(self) -> None:
                self.calls: list = []

            def put(self, ids) -> None:
                self.calls.append(list(ids))

            def end(self) -> None:
                self.calls.append("end")

        streamer = Recorder()
        prompt, greedy = llama.prompts[2], llama.greedy[2]
        llama.model.generate([prompt], streamer=streamer, **{**GREEDY, "max_new_tokens": 5})
        assert streamer.calls == [prompt, *([token] for token in greedy[:5]), "end"]
        with pytest.raises(InputError, match="1 streamers for 2 prompts"):
            llama.model.generate([[1], [2]], streamer=[streamer])

    def test_the_stream_ends_when_the_run_fails(self, llama: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
        streamer = TextIteratorStreamer(load_tokenizer(SPM), timeout=60)

        def fail(batch):
            raise InferenceError("broken")

        monkeypatch.setattr(llama.model.runner, "step", fail)
        with pytest.raises(InferenceError, match="broken"):
            llama.model.generate([llama.prompts[2]], streamer=streamer)
        list(streamer)

    def test_two_threads_do_not_interfere(self, llama: Golden) -> None:
        answers: dict[int, list[list[int]]] = {}

        def run(index: int) -> None:
            answers[index] = llama.model.generate([llama.prompts[index]], **GREEDY)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {i: rows[0] for i, rows in answers.items()} == {i: llama.prompts[i] + llama.greedy[i] for i in range(4)}


class TestAnswer:
    TEXTS = ("The cat", "A dog and", "Sun")

    def encode(self, llama: Golden, **settings):
        tokenizer = load_tokenizer(SPM)
        generation = GenerationConfig(max_new_tokens=8, ignore_eos=True, **settings)
        encoder = Encoder(tokenizer, max(128, len(tokenizer)), 256, generation)
        prompts = [Prompt(str(i), str(i), text) for i, text in enumerate(self.TEXTS)]
        return tokenizer, encoder.encode_all(prompts)

    @pytest.fixture
    def small_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The golden models know 128 tokens; the tokenizer's larger ids are folded into them."""
        tokenizer_class = type(load_tokenizer(SPM))
        encode = tokenizer_class.encode
        monkeypatch.setattr(
            tokenizer_class, "encode", lambda self, text, **k: [i % 128 for i in encode(self, text, **k)]
        )

    def test_answers_are_in_the_order_of_their_prompts(self, llama: Golden, small_ids: None) -> None:
        tokenizer, prompts = self.encode(llama)
        together = llama.model.answer(prompts, tokenizer)
        assert together == [llama.model.answer([prompt], tokenizer)[0] for prompt in prompts]
        assert llama.model.answer(reversed(prompts), tokenizer) == together[::-1]
        assert len({text for (text,) in together}) == 3

    def test_a_streamer_sees_prompts_and_answers_row_by_row(self, llama: Golden, small_ids: None) -> None:
        tokenizer, prompts = self.encode(llama)
        metrics = llama.model.metrics = RunMetrics()
        for skip in (False, True):
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip, timeout=60)
            answers = llama.model.answer(prompts, tokenizer, streamer)
            shown = "".join("" if skip else prompt.text + "|" for prompt in prompts).split("|")
            texts = [text for (text,) in answers]
            expected = "".join(texts) if skip else "".join(p + a for p, a in zip(shown, texts, strict=False))
            assert "".join(streamer) == expected
        assert metrics.requests == 6 and metrics.completion_tokens == 48

    def test_the_stream_ends_when_the_run_fails(
        self, llama: Golden, small_ids: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokenizer, prompts = self.encode(llama)
        streamer = TextIteratorStreamer(tokenizer, timeout=60, skip_prompt=True)
        step, calls = llama.model.runner.step, []

        def fail(batch):
            calls.append(batch)
            result = step(batch)
            return dataclasses.replace(result, best=result.best * 0 - 1) if len(calls) == 3 else result

        monkeypatch.setattr(llama.model.runner, "step", fail)
        with pytest.raises(InferenceError, match="not numbers"):
            llama.model.answer(prompts, tokenizer, streamer)
        assert isinstance("".join(streamer), str) and len(calls) == 3
        monkeypatch.undo()
        assert llama.model.generate([llama.prompts[0]], **GREEDY)[0] == llama.prompts[0] + llama.greedy[0]


class TestCacheSize:
    """How many blocks of cache a model gets. One takes 2 (keys and values) * 3 layers * 16 floats a position."""

    @pytest.fixture
    def memory(self, monkeypatch: pytest.MonkeyPatch):
        def give(free: int) -> None:
            monkeypatch.setattr(cache_size, "available_memory", lambda: free)

        return give

    def blocks(self, positions: int | None, weights: Format = Format.FLOAT32, **engine) -> int:
        source = resolve(config_of("llama2_gqa", engine={"block_size": 16, **engine}))
        return num_blocks(source, positions, weights)

    def test_as_much_as_the_work_needs(self, memory) -> None:
        memory(2**33)
        assert self.blocks(100) == 7 + 1
        assert self.blocks(None, max_sequences=3) == 3 * 256 // 16 + 1

    def test_kv_cache_memory_sets_the_size(self, memory) -> None:
        memory(2**33)
        block = 2 * 3 * 16 * 16 * 4
        assert self.blocks(100, kv_cache_memory=10**6) == 10**6 // block + 1
        assert self.blocks(100, kv_cache_memory=10**6, kv_cache_dtype="float16") == 10**6 // (block // 2) + 1
        # Each vector of 8 values has a scale of four bytes.
        int8 = block // 4 * 12 // 8
        assert self.blocks(100, kv_cache_memory=10**6, kv_cache_dtype="int8") == 10**6 // int8 + 1
        stock = self.blocks(100, kv_cache_memory=10**6, kv_cache_dtype="int8", kernels="stock")
        assert stock == 10**6 // block + 1

    def test_the_cache_takes_at_most_half_of_the_free_memory(self, memory) -> None:
        config = resolve(config_of("llama2_gqa")).model
        block = 2 * 3 * 16 * 16 * 4
        memory(4 * config.num_parameters + 2 * 7 * block)
        assert self.blocks(10**6) == 7 + 1
        assert self.blocks(10**6, Format.FLOAT16) > 7 + 1
        assert self.blocks(10**6, Format.FLOAT16, kernels="stock") == 7 + 1

    @pytest.mark.parametrize("free", [0, 50_000])
    def test_too_little_memory(self, memory, free: int) -> None:
        memory(free)
        with pytest.raises(InferenceError, match="llama2_gqa needs .*GiB are free; take a smaller model") as caught:
            self.blocks(100)
        assert caught.value.exit_code == 1

    def test_a_cache_larger_than_memory_is_rejected(self, memory) -> None:
        memory(10**6)
        with pytest.raises(InferenceError, match="kv_cache_memory"):
            self.blocks(100, kv_cache_memory=10**9)
        with pytest.raises(ConfigError, match="kv_cache_memory is 1000 bytes, a block of 16 positions takes 6144"):
            self.blocks(100, kv_cache_memory=1000)

    def test_too_little_for_one_row(self, memory) -> None:
        memory(2**33)
        source = resolve(config_of("llama2_gqa", engine={"block_size": 16, "kv_cache_memory": 5 * 6144}))
        assert num_blocks(source, 1000, Format.FLOAT32, row=80) == 5 + 1
        message = r"kv_cache_memory is 30720 bytes, the longest prompt with its answer \(81 positions\) takes 36864"
        with pytest.raises(ConfigError, match=message):
            num_blocks(source, 1000, Format.FLOAT32, row=81)
        config = resolve(config_of("llama2_gqa")).model
        memory(4 * config.num_parameters + 2 * 7 * 6144)
        with pytest.raises(InferenceError, match="max_new_tokens"):
            num_blocks(resolve(config_of("llama2_gqa", engine={"block_size": 16})), 1000, Format.FLOAT32, row=113)

    def test_it_is_rejected_before_the_weights_are_read(self, memory, monkeypatch: pytest.MonkeyPatch) -> None:
        memory(10**6)
        monkeypatch.setattr(build, "ModelRunner", lambda *_, **__: pytest.fail("the weights are loaded"))
        with pytest.raises(InferenceError, match="needs .*GiB for the KV cache"):
            GenerativeModel.from_config(config_of("llama2_gqa", engine={"kv_cache_memory": 10**9}), say=print)

    def test_it_is_described(self, llama: Golden) -> None:
        settings = {"kv_cache_memory": 62 * 6144, "max_sequences": 5}
        model = GenerativeModel.from_config(config_of("llama2_gqa", engine=settings), say=print)
        said = model.describe_cache()
        assert said == ("KV cache: 992 positions, 0 MiB, as engine.kv_cache_memory says; at most 5 rows at once")
        assert "sized to work and memory" in llama.model.describe_cache()

    def test_positions_that_prompts_need(self) -> None:
        encoder = Encoder(None, 128, 256, GenerationConfig(max_new_tokens=10))
        lengths = (1, 30, 100, 250)
        prompts = [encoder.encode(i, Prompt(str(i), "", token_ids=(1,) * n)) for i, n in enumerate(lengths)]
        source = resolve(config_of("llama2_gqa", engine={"block_size": 16}))
        assert positions_needed(prompts, source) == 16 + 48 + 112 + 256
        assert longest_row(prompts, source) == 256
        two = resolve(config_of("llama2_gqa", engine={"block_size": 16}, predict_batch_size=2))
        assert positions_needed(prompts, two) == 112 + 256

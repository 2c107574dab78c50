"""`LLM` on the demo model: answers as they finish, streams side by side, and the event loop's form."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading

import numpy as np
import pytest

from inference import LLM, GenerationConfig, InferenceError, TextIteratorStreamer, TextStreamer, load_config, pipeline
from inference.errors import ConfigError, GenerationError, InputError
from inference.inputs.prompts import Prompt

SUM, PHRASE, STORY = "12 + 7 =", "Translate to German: the big house", "Once upon a time"
ANSWERS, BAD = [" 19", " das große Haus"], "The dog"


@pytest.fixture(scope="module")
def llm(model, tokenizer):
    return LLM(model, tokenizer)


def texts(llm, prompts, **settings) -> list[str]:
    """Answers in the order of their prompts."""
    return [c.text for c in llm.generate(prompts, **settings)]


def test_generate_keeps_the_order_and_as_completed_does_not(llm):
    rows = [{"prompt": STORY, "max_new_tokens": 40, "ignore_eos": True}, SUM, *[f"{n} + 7 =" for n in range(9)]]
    assert [c.index for c in llm.generate(rows)] == list(range(11))
    assert next(llm.as_completed(rows)).index != 0


def test_a_chat_in_one_call(llm):
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    assert llm.chat(messages).text == "5"
    # Messages are not rows, wherever they are given.
    assert [c.text for c in llm.generate(messages)] == ["5"]
    assert [c.text for c in llm.generate([messages, SUM])] == ["5", " 19"]
    assert llm.stream(messages).__next__() == "5"


def test_messages_are_accepted_in_every_form(llm):
    message = {"role": "user", "content": "What is 2 + 3?"}
    assert [llm.chat(given).text for given in ("What is 2 + 3?", message, [message])] == ["5"] * 3
    assert [c.text for c in llm.generate(message)] == ["5"]
    assert [c.text for c in llm.generate([message, {"role": "assistant", "content": "5"}, message])] == ["5"]


def test_errors_for_invalid_prompts_have_a_hint(llm):
    for given, message in (
        (3, "prompts are int; give a text, token ids, messages, or an iterable of these"),
        (None, "prompts are NoneType; give a text, "),
    ):
        with pytest.raises(InputError, match=message):
            list(llm.generate(given))
    with pytest.raises(InputError, match=r"messages must be .* such as \[\{\"role\": \"user\", "):
        list(llm.generate({"messages": "hi"}))
    for given in ("hi", [{"role": "user", "content": "hi"}], [1.5]):
        with pytest.raises(InputError, match="generate takes token ids; for texts use LLM or pipeline, for messages "):
            llm.model.generate(given)
    with pytest.raises(InputError, match="input 1 is a message of a chat; use LLM"):
        pipeline(model=llm.model, tokenizer=llm.tokenizer)([{"role": "user", "content": "hi"}])


def test_reprs(llm):
    assert repr(llm) == "LLM(GenerativeModel('demo', LlamaForCausalLM, float16))"
    assert repr(pipeline(model=llm.model)) == f"TextGenerationPipeline({llm.model!r})"
    assert "Tokenizer(" in repr(llm.tokenizer)


def test_several_samples_of_a_prompt(llm):
    """Each has its own seed, and all find the prompt in the cache; the same again in other company."""
    settings = {"n": 3, "temperature": 1.5, "max_new_tokens": 8, "seed": 11, "ignore_eos": True}
    prompt = llm.tokenizer.encode(STORY * 8)
    (alone,) = llm.generate([prompt], **settings)
    assert len({sample.token_ids for sample in alone.samples}) == 3
    assert alone.text == alone.samples[0].text and alone.samples[0].samples is None
    assert all(sample.cached_tokens >= len(prompt) // 16 * 16 for sample in alone.samples[1:])
    first, again, other = llm.generate([{"prompt": prompt}, {"prompt": prompt, "seed": 11}, prompt], **settings)
    ids = [[sample.token_ids for sample in row.samples] for row in (alone, first, again, other)]
    # A row's own seed gives the same wherever the row stands; equal prompts of a run differ.
    assert ids[0] == ids[1] == ids[2] != ids[3]
    (flat,) = pipeline(model=llm.model, tokenizer=llm.tokenizer)(STORY, max_new_tokens=3, n=2).__iter__()
    assert len(flat["text_generation_text"]) == 2
    assert len(llm.model.generate([prompt], max_new_tokens=3, num_return_sequences=2)) == 2


def test_a_row_of_several_samples_fails_once(llm):
    rows = [{"prompt": SUM, "n": 2, "suppress_tokens": list(range(llm.model.config.vocab_size))}]
    (failed,) = llm.generate(rows, return_errors=True)
    assert failed.finish_reason == "error" and "leave no token" in str(failed.error)


@pytest.mark.parametrize("setting", [{"temperature": 0.8}, {"top_p": 0.9}, {"top_k": 40}])
def test_a_temperature_alone_turns_sampling_on(model, tokenizer, setting, capsys):
    llm, name = LLM(model, tokenizer), next(iter(setting))
    for rows, call in (({"prompt": STORY, **setting}, {}), (STORY, setting)):
        (completion,) = llm.generate(rows, **call, max_new_tokens=1)
        assert llm._encoder(call).encode(0, Prompt("", "", text=SUM, settings=setting)).generation.do_sample
        assert completion.finish_reason
    assert capsys.readouterr().err.count(f"{name} without do_sample: answers are sampled") == 1
    greedy = llm._encoder({**setting, "do_sample": False}).generation
    assert greedy.greedy and llm._encoder({"temperature": 0}).generation.greedy


def test_every_form_of_a_prompt(llm, tokenizer):
    ids = tokenizer.encode(SUM)
    forms = [
        *(SUM, ids, tuple(ids), np.array(ids), {"prompt": SUM}, {"prompt": ids, "max_new_tokens": 9}),
        Prompt("mine", "here", text=SUM),
        {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "custom_id": 7},
    ]
    completions = {c.index: c for c in llm.generate(forms)}
    assert [completions[i].text for i in range(len(forms))] == [" 19"] * 7 + ["5"]
    assert [completions[i].custom_id for i in range(len(forms))] == ["0", "1", "2", "3", "4", "5", "mine", "7"]
    for one in (SUM, ids, np.array(ids), {"prompt": SUM}, Prompt("mine", "here", text=SUM), [SUM]):
        assert texts(llm, one) == [" 19"]
    assert texts(llm, []) == []


def test_the_fields_of_a_completion(llm, tokenizer):
    (stop,) = llm.generate({"prompt": SUM, "custom_id": "sum"}, logprobs=2)
    assert (stop.index, stop.custom_id, stop.prompt, stop.text, stop.finish_reason) == (0, "sum", SUM, " 19", "stop")
    assert tokenizer.decode(list(stop.token_ids), skip_special_tokens=True) == "19"
    assert stop.token_ids[-1] in llm.model.generation_config.eos_token_id
    assert [item.token_id for item in stop.logprobs] == list(stop.token_ids)
    assert (stop.prompt_tokens, stop.completion_tokens, len(stop.token_ids), stop.error) == (8, 4, 4, None)
    assert 0 < stop.ttft_seconds <= stop.total_seconds
    (length,) = llm.generate(STORY, max_new_tokens=3)
    assert length.finish_reason == "length" and length.completion_tokens == 3


def test_a_chat_reuses_its_earlier_turns_from_the_cache(llm, tokenizer):
    first = tokenizer.encode(STORY)
    (one,) = llm.generate(first, max_new_tokens=40, ignore_eos=True)
    before = llm.metrics.reused_tokens
    (two,) = llm.generate([*first, *one.token_ids, 300], max_new_tokens=2)
    assert two.cached_tokens == (len(first) + 39) // 16 * 16 == llm.metrics.reused_tokens - before


def test_settings_of_a_prompt_outrank_those_of_the_call(llm):
    rows = [{"prompt": STORY, "max_new_tokens": 2}, STORY]
    assert sorted(c.completion_tokens for c in llm.generate(rows, max_new_tokens=5)) == [2, 5]
    assert llm.model.generation_config.max_new_tokens != 5


def test_prompts_are_read_as_they_are_needed(llm):
    read = itertools.count()
    endless = (f"{next(read) % 90} + 7 =" for _ in itertools.count())
    answers = llm.generate(endless)
    for completion in itertools.islice(answers, 200):
        assert completion.text == f" {completion.index % 90 + 7}"
    assert next(read) < 200 + 2 * llm.model.max_sequences + 1
    answers.close()
    assert texts(llm, SUM) == [" 19"]


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "message"),
    [
        (SUM, {"temprature": 1}, ConfigError, "unknown generation setting 'temprature'; did you mean 'temperature'?"),
        ([SUM, " "], {}, InputError, "prompt 2: the prompt is empty"),
        ([SUM, 3.5], {}, InputError, "prompt 2: prompt must be text or a list of token ids"),
        ([{"promt": SUM}], {}, InputError, "prompt 1: unknown generation setting 'promt'; did you mean 'prompt'?"),
        ([{"prompt": SUM, "messages": []}], {}, InputError, "prompt 1: both prompt and messages in this row"),
        ([{"prompt": 3}], {}, InputError, "prompt 1: prompt must be text or a list of token ids"),
        ([{"messages": [{"content": "hi"}]}], {}, InputError, "prompt 1: messages must be a list of objects"),
        ([{"prompt": SUM, "custom_id": [1]}], {}, InputError, "prompt 1: custom_id must be text or a number"),
        ([{"prompt": SUM, "top_pp": 1}], {}, InputError, "prompt 1: unknown generation setting 'top_pp'"),
        ([[99999]], {}, InputError, "prompt 1: token id 99999 is outside the vocabulary"),
        ([[]], {}, InputError, "prompt 1: the prompt is empty; give at least one token"),
    ],
)
def test_invalid_input_is_rejected(llm, prompts, settings, error, message):
    with pytest.raises(error, match=message):
        list(llm.generate(prompts, **settings))
    assert texts(llm, SUM) == [" 19"]


def test_settings_are_checked_before_any_request(llm):
    for call in (llm.generate, llm.stream, llm.agenerate):
        with pytest.raises(ConfigError, match="temprature"):
            call(SUM, temprature=1)


@pytest.fixture
def poisoned(model, monkeypatch):
    """The model gives NaN logits for a row that has a certain token in its prompt."""
    step, bad = model.stepper.step, model.source.tokenizer().encode(BAD)[-1]

    def broken(batch):
        result = step(batch)
        ends = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
        hit = [bad in batch.tokens[start:end] for start, end in ends]
        return dataclasses.replace(result, best=np.where(hit, -1, result.best))

    monkeypatch.setattr(model.stepper, "step", broken)


def test_a_row_on_which_the_model_fails_fails_alone(llm, tokenizer, poisoned):
    streams = [llm.stream(SUM), llm.stream(BAD)]
    found = {c.index: c for c in llm.generate([SUM, BAD, PHRASE], return_errors=True)}
    assert [found[0].text, found[2].text] == ANSWERS and found[0].error is None
    assert (found[1].finish_reason, found[1].custom_id, found[1].prompt, found[1].text) == ("error", "1", BAD, None)
    assert found[1].error.type == "model_failed" and "logits that are not numbers" in str(found[1].error)
    assert "".join(streams[0]) == ANSWERS[0]
    with pytest.raises(GenerationError, match="not numbers"):
        list(streams[1])
    with pytest.raises(GenerationError, match="not numbers"):
        list(llm.generate([SUM, BAD, PHRASE]))
    assert texts(llm, SUM) == [ANSWERS[0]]


def test_a_pipeline_returns_errors_if_requested(model, tokenizer, poisoned, capsys):
    pipe = pipeline(model=model, tokenizer=tokenizer)
    inputs, show = [SUM, BAD, " ", PHRASE], {"return_full_text": False, "return_errors": True}
    streamers = [TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=10) for _ in inputs]
    for streamer in (None, TextStreamer(tokenizer, skip_prompt=True), streamers):
        results = pipe(inputs, streamer=streamer, **show)
        assert [result["text_generation_text"] for result in results] == [[ANSWERS[0]], [], [], [ANSWERS[1]]]
        assert ["error" in result for result in results] == [False, True, True, False]
        assert "not numbers" in str(results[1]["error"]) and "input 3: the prompt is empty" in str(results[2]["error"])
    assert capsys.readouterr().out == f"{ANSWERS[0]}\n\n\n{ANSWERS[1]}\n"
    assert ["".join(streamer) for streamer in streamers] == [ANSWERS[0], "", "", ANSWERS[1]]
    for bad, error in ((BAD, GenerationError), (" ", InputError), (3, InputError)):
        with pytest.raises(error):
            pipe([SUM, bad])


def test_rows_that_cannot_run_are_returned_if_requested(llm, monkeypatch):
    monkeypatch.setattr(llm.model.runner.blocks, "capacity", 20)
    rows = [" ", SUM, {"prompt": SUM, "top_pp": 1, "custom_id": "typo"}, {"prompt": STORY, "max_new_tokens": 400}]
    found = {c.index: c for c in llm.generate(rows, return_errors=True)}
    assert found[1].text == " 19" and found[1].error is None
    for index, name, message in ((0, "0", "empty"), (2, "typo", "top_pp"), (3, "3", "positions of KV cache")):
        assert (found[index].finish_reason, found[index].custom_id) == ("error", name)
        assert message in str(found[index].error)
    assert len(found) == 4 and list(llm.generate([" "], return_errors=True))[0].error


def test_streams_side_by_side(llm):
    streams = [llm.stream(STORY, max_new_tokens=20), llm.stream(SUM), llm.stream(PHRASE)]
    assert streams[0].completion is None
    pieces = [list(stream) for stream in reversed(streams)][::-1]
    assert ["".join(row) for row in pieces] == texts(llm, [{"prompt": STORY, "max_new_tokens": 20}, SUM, PHRASE])
    assert len(pieces[0]) > 10 and all(pieces[0])
    assert streams[1].completion.text == " 19" and streams[1].completion.finish_reason == "stop"
    assert list(streams[0]) == []


def test_a_closed_or_abandoned_stream_frees_its_row(llm):
    pool = llm.model.runner.blocks
    closed, forgotten = (llm.stream(STORY, max_new_tokens=400, ignore_eos=True) for _ in range(2))
    next(closed), next(forgotten)
    closed.close()
    assert list(closed) == [] and closed.completion is None
    del forgotten
    llm.model.background._thread.join(20)
    assert pool.num_free == pool.capacity


def test_close_ends_running_requests(model, tokenizer):
    with LLM(model, tokenizer) as llm:
        stream = llm.stream(STORY, max_new_tokens=400, ignore_eos=True)
        next(stream)
    with pytest.raises(InferenceError, match="the engine was closed"):
        list(stream)
    for call in (llm.generate, llm.as_completed, llm.stream, llm.agenerate):
        with pytest.raises(InferenceError, match="this LLM is closed"):
            call(SUM)
    assert repr(llm).endswith("closed)")
    # The model is not.
    assert texts(LLM(model, tokenizer), SUM) == [" 19"]


class TestEventLoop:
    def test_many_at_once(self, llm):
        async def one(prompt: str) -> tuple[str, str]:
            stream = llm.agenerate(prompt)
            text = "".join([piece async for piece in stream])
            assert stream.completion.text == text
            return text, stream.completion.finish_reason

        async def everything() -> list:
            return await asyncio.gather(*(one(f"{n} + 7 =") for n in range(40)))

        assert asyncio.run(everything()) == [(f" {n + 7}", "stop") for n in range(40)]

    def test_awaiting_returns_the_whole_answer(self, llm):
        async def one() -> str:
            return (await llm.agenerate(SUM)).text

        assert asyncio.run(one()) == " 19"

    def test_result(self, llm):
        assert asyncio.run(llm.agenerate(SUM).result()).text == " 19"

    def test_the_event_loop_runs_while_the_model_computes(self, llm):
        async def ticks() -> int:
            task = asyncio.create_task(llm.agenerate(STORY, max_new_tokens=200, ignore_eos=True).result())
            count = 0
            while not task.done():
                await asyncio.sleep(0.001)
                count += 1
            return count

        # A loop that had to wait for the model would come round once in all.
        assert asyncio.run(ticks()) > 5

    def test_cancelling_frees_the_row(self, llm):
        pool = llm.model.runner.blocks

        async def cancel() -> None:
            broken_off = llm.agenerate(STORY, max_new_tokens=450, ignore_eos=True)
            async for piece in broken_off:
                assert piece
                break
            await broken_off.aclose()
            task = asyncio.create_task(llm.agenerate(STORY, max_new_tokens=450, ignore_eos=True).result())
            while not llm.model.background._entries:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel())
        thread = llm.model.background._thread
        if thread is not None:
            thread.join(60)
        assert pool.num_free == pool.capacity

    def test_a_prompt_that_cannot_be_used(self, llm):
        with pytest.raises(InputError, match="prompt 1: the prompt is empty"):
            llm.agenerate(" ")


def test_a_pipeline_joins_the_same_engine(llm, model, tokenizer):
    """While a long answer streams, the pipeline answers; then the rest of the stream is taken."""
    stream = llm.stream(STORY, max_new_tokens=300, ignore_eos=True)
    first = next(stream)
    assert pipeline(model=model, tokenizer=tokenizer)(SUM) == [{"text_generation_text": [f"{SUM} 19"]}]
    assert model.generate(tokenizer.encode(SUM), max_new_tokens=1)[0][-1] == 1205
    assert model.background._thread is not None, "the answer had ended: it was not the same engine"
    assert first + "".join(stream) == texts(llm, STORY, max_new_tokens=300, ignore_eos=True)[0]


def test_a_streamer_for_each_input_of_a_pipeline(model, tokenizer):
    pipe = pipeline(model=model, tokenizer=tokenizer)
    streamers = [TextIteratorStreamer(tokenizer, skip_prompt=skip, timeout=60) for skip in (True, False, True)]
    found: dict[int, str] = {}
    # The last first: none of them waits for another.
    readers = [threading.Thread(target=lambda i=i: found.update({i: "".join(streamers[i])})) for i in (2, 1, 0)]
    for reader in readers:
        reader.start()
    outputs = pipe([STORY, SUM, PHRASE], streamer=streamers, max_new_tokens=20, return_full_text=False)
    for reader in readers:
        reader.join(60)
    answers = [output["text_generation_text"][0] for output in outputs]
    assert [found[row] for row in range(3)] == [answers[0], SUM + answers[1], answers[2]]


def test_streamers_end_when_there_are_too_few(model, tokenizer):
    streamers = [TextIteratorStreamer(tokenizer, timeout=60)]
    with pytest.raises(InputError, match="1 streamers for 2 inputs"):
        pipeline(model=model, tokenizer=tokenizer)([SUM, PHRASE], streamer=streamers)
    assert list(streamers[0]) == []


def test_the_ways_to_make_an_llm(demo, model):
    config = load_config({"pretrained_model_dir": str(demo), "engine": {"max_sequences": 3, "prefix_cache": False}})
    llm = LLM(config)
    assert llm.model.max_sequences == 3 and texts(llm, [SUM, SUM, SUM]) == [" 19"] * 3
    assert llm.metrics.requests == 3 and llm.metrics.reused_tokens == 0
    assert LLM("demo", predict_batch_size=2).model.max_sequences == 2
    mapping = {"pretrained_model_dir": str(demo), "engine": {"kv_cache_memory": "1MiB"}}
    assert texts(LLM(mapping), SUM) == [" 19"]
    with pytest.raises(InputError, match="a model that is loaded takes no settings"):
        LLM(model, predict_batch_size=2)
    with pytest.raises(ConfigError, match="no 'predict_bach_size'; did you mean 'predict_batch_size'"):
        LLM("demo", predict_bach_size=2)


def test_the_number_of_running_rows_is_limited(demo, monkeypatch):
    llm = LLM({"pretrained_model_dir": str(demo), "predict_batch_size": 2})
    step, rows = llm.model.runner.step, []
    monkeypatch.setattr(llm.model.runner, "step", lambda batch: (rows.append(len(batch.block_tables)), step(batch))[1])
    assert texts(llm, [f"{n} + 7 =" for n in range(9)]) == [f" {n + 7}" for n in range(9)]
    assert max(rows) == 2


def test_a_streamer_of_a_pipeline_still_shows_row_after_row(model, tokenizer, capsys):
    settings = GenerationConfig(max_new_tokens=10).given()
    outputs = pipeline(model=model, tokenizer=tokenizer)([STORY, SUM], streamer=TextStreamer(tokenizer), **settings)
    assert capsys.readouterr().out == "".join(f"{output['text_generation_text'][0]}\n" for output in outputs)

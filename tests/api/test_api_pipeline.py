"""`pipeline`, `generate` and the streamers, on the demo model."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from inference import GenerationConfig, TextIteratorStreamer, TextStreamer, pipeline
from inference.errors import ConfigError, InputError
from inference.inputs.prompts import RowError

SUM, PHRASE, STORY = "12 + 7 =", "Translate to German: the big house", "Once upon a time"
ANSWERS = [f"{SUM} 19", f"{PHRASE} das große Haus"]


@pytest.fixture(scope="module")
def pipe(model, tokenizer):
    return pipeline(task="text_generation", model=model, tokenizer=tokenizer)


def test_one_input_and_many(pipe):
    assert pipe(SUM) == [{"text_generation_text": [ANSWERS[0]]}]
    assert pipe([SUM, PHRASE]) == [{"text_generation_text": [text]} for text in ANSWERS]
    assert pipe((PHRASE,)) == [{"text_generation_text": [ANSWERS[1]]}]
    assert pipe([PHRASE], return_full_text=False) == [{"text_generation_text": [" das große Haus"]}]


def test_settings_of_a_call_apply_only_to_that_call(pipe):
    (short,) = pipe(STORY, max_new_tokens=3)
    (longer,) = pipe(STORY, max_length=12, do_sample=False, top_k=3, top_p=1)
    assert longer["text_generation_text"][0].startswith(short["text_generation_text"][0])
    assert longer != short
    assert pipe(SUM) == [{"text_generation_text": [ANSWERS[0]]}]


def test_settings_of_a_pipeline_apply_to_every_call(model):
    pipe = pipeline("text-generation", model, max_new_tokens=1)
    assert pipe(SUM) == [{"text_generation_text": [f"{SUM} "]}]


def test_sampling_depends_on_the_seed_alone(pipe):
    settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 10}
    first = pipe([STORY, SUM, PHRASE], seed=0, **settings)
    assert pipe([STORY], seed=0, **settings) == first[:1]
    assert pipe([STORY], seed=1, **settings) != first[:1]


def test_temperature_zero_is_greedy(pipe):
    assert pipe(SUM, do_sample=True, temperature=0) == pipe(SUM)


@pytest.mark.parametrize(
    ("inputs", "settings", "error", "message"),
    [
        ([], {}, InputError, "the pipeline was given no input"),
        (["a", " "], {}, InputError, "input 2: "),
        ([""], {}, InputError, "input 1: "),
        ([3], {}, InputError, "input 1: prompt must be text or a list of token ids"),
        (SUM, {"max_lenght": 3}, ConfigError, "unknown generation setting 'max_lenght'; did you mean 'max_length'?"),
        (SUM, {"temperature": -1}, ConfigError, "temperature must be at least 0, got -1"),
        (SUM, {"top_p": 0}, ConfigError, "top_p must be greater than 0, got 0"),
        (SUM, {"num_beams": 2}, ConfigError, "num_beams is not supported yet except as 1, got 2"),
        (
            SUM,
            {"max_length": 3},
            InputError,
            r"input 1: the prompt has 8 tokens, at most 2 leave .*max_length is 3",
        ),
        ("word " * 600, {}, InputError, "the model's context is 512"),
    ],
)
def test_settings_that_a_pipeline_rejects(pipe, inputs, settings, error, message):
    with pytest.raises(error, match=message):
        pipe(inputs, **settings)


def test_arguments_that_do_not_make_a_pipeline(model):
    with pytest.raises(ConfigError, match="there is no task 'text_generatoin'; did you mean 'text_generation'?"):
        pipeline("text_generatoin", model)
    with pytest.raises(ConfigError, match="pipeline needs a model; give a model, a preset's name or a directory"):
        pipeline("text_generation")
    with pytest.raises(ConfigError, match="unknown generation setting 'max_token'; did you mean 'max_new_tokens'"):
        pipeline("text_generation", model, max_token=3)


def test_generate_takes_ids_in_any_form_and_of_any_length(model, tokenizer):
    rows = tokenizer([SUM, "Translate to English: das große Haus"])["input_ids"]
    assert len(rows[0]) != len(rows[1])
    out = model.generate(rows)
    assert tokenizer.batch_decode(out) == [ANSWERS[0], "Translate to English: das große Haus the big house"]
    assert [row[: len(given)] for row, given in zip(out, rows, strict=True)] == rows
    one = rows[0]
    for form in (one, [one], np.array([one]), tuple(one), {"input_ids": [one]}):
        assert model.generate(form) == out[:1]
    # The config takes the place of the model's own settings, its end-of-sequence ids too.
    config = GenerationConfig(max_new_tokens=1, eos_token_id=2)
    assert model.generate(one, config) == [out[0][: len(one) + 1]]
    assert model.generate(one, temperature=0, do_sample=True) == out[:1]


@pytest.mark.parametrize("ids", [[], [[]], [[1], []], [99999], [-1]])
def test_generate_rejects_invalid_ids(model, ids):
    with pytest.raises(InputError):
        model.generate(ids)


def test_streamed_text_adds_up_row_after_row(pipe, tokenizer, capsys):
    outputs = pipe([STORY, SUM], streamer=TextStreamer(tokenizer), max_new_tokens=20)
    expected = "".join(f"{output['text_generation_text'][0]}\n" for output in outputs)
    assert capsys.readouterr().out == expected
    outputs = pipe([STORY, SUM], streamer=TextStreamer(tokenizer, skip_prompt=True), return_full_text=False)
    assert capsys.readouterr().out == "".join(f"{output['text_generation_text'][0]}\n" for output in outputs)


def test_a_streamer_can_be_used_again(model, tokenizer, capsys):
    pipe = pipeline(model=model, tokenizer=tokenizer, streamer=TextStreamer(tokenizer))
    pipe(SUM)
    pipe(PHRASE)
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in ANSWERS)


class Ids:
    """A streamer as MindFormers' base class has it: `put` and `end`."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(list(value))

    def end(self):
        self.calls.append("end")


def test_generate_streams_rows(model, tokenizer, capsys):
    ids = tokenizer([SUM, PHRASE])["input_ids"]
    model.generate(ids[0], streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == f"{ANSWERS[0]}\n"
    out = model.generate(ids, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in ANSWERS)
    one, two = Ids(), [Ids(), Ids()]
    model.generate(ids, streamer=one)
    model.generate(ids, streamer=two)
    expected = []
    for row, given, streamer in zip(out, ids, two, strict=True):
        assert streamer.calls == [given, *([token] for token in row[len(given) :]), "end"]
        expected += streamer.calls
    # One streamer gets the rows one after the other.
    assert one.calls == expected
    with pytest.raises(InputError, match="1 streamers for 2 prompts"):
        model.generate(ids, streamer=[Ids()])


def test_streamers_with_put_and_end(pipe, model, tokenizer):
    import inference

    class Subclass(Ids, inference.BaseStreamer):
        """Has `put` and `end`, and no `on_finalized_text`."""

    ids = tokenizer([SUM, PHRASE])["input_ids"]
    expected = Ids()
    model.generate(ids, streamer=expected)
    for streamer in (Ids(), Subclass()):
        pipe([SUM, PHRASE], streamer=streamer)
        assert streamer.calls == expected.calls
    each = [Ids(), Ids()]
    pipe([SUM, PHRASE], streamer=each)
    assert each[0].calls + each[1].calls == expected.calls
    broken = Ids()
    with pytest.raises(InputError):
        pipe([SUM, ""], streamer=broken)
    assert broken.calls == ["end"]


def test_padding_is_recognized(model, tokenizer, capsys):
    rows = tokenizer([SUM, "Translate to English: das große Haus"])["input_ids"]
    expected = model.generate(rows)
    pad = next(
        token for token in range(5, 99) if token not in {*rows[0], *rows[1], *model.generation_config.eos_token_id}
    )
    width = max(map(len, rows)) + 2
    right = [[*row, *[pad] * (width - len(row))] for row in rows]
    left = [[*[pad] * (width - len(row)), *row] for row in rows]
    mask = np.array(right) != pad
    assert model.generate(right, attention_mask=mask) == expected
    assert model.generate({"input_ids": right, "attention_mask": mask.tolist()}) == expected
    assert model.generate(right, valid_length=[len(row) for row in rows]) == expected
    assert capsys.readouterr().err == ""
    assert model.generate(right, pad_token_id=pad) == model.generate(left, pad_token_id=pad) == expected
    assert capsys.readouterr().err.startswith(f"removed pad_token_id {pad} from the ends of rows; an attention_mask")
    with pytest.raises(InputError, match="attention_mask has 1 rows, and there are 2 prompts"):
        model.generate(rows, attention_mask=[[1]])
    with pytest.raises(InputError, match="valid_length of row 1 is 0; from 1 to"):
        model.generate(rows[:1], valid_length=[0])


def test_nested_ids_are_decoded(tokenizer):
    rows = tokenizer([SUM, PHRASE])["input_ids"]
    texts = tokenizer.batch_decode(rows)
    assert tokenizer.decode(rows) == texts and tokenizer.decode(np.array([rows[0]])) == texts[:1]
    assert tokenizer.decode(rows[0][1]) == tokenizer.decode([rows[0][1]]) == tokenizer.decode(np.array(rows[0][1]))


def collect(pipe, tokenizer, inputs, **settings) -> tuple[list[str], list[BaseException]]:
    """The pieces that an iterator gives while a thread generates, and the thread's errors."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    errors: list[BaseException] = []

    def generate() -> None:
        try:
            pipe(inputs, streamer=streamer, **settings)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    pieces = list(streamer)
    thread.join()
    return pieces, errors


def test_text_iterator_gives_pieces_and_ends(pipe, tokenizer):
    pieces, errors = collect(pipe, tokenizer, [STORY, SUM], max_new_tokens=20)
    assert errors == []
    assert len(pieces) > 5
    expected = pipe([STORY, SUM], return_full_text=False, max_new_tokens=20)
    assert "".join(pieces) == "".join(output["text_generation_text"][0] for output in expected)


def test_text_iterator_ends_when_the_generation_fails(pipe, tokenizer):
    pieces, errors = collect(pipe, tokenizer, [""])
    assert pieces == []
    assert [type(error) for error in errors] == [RowError]


def test_mindformers_forms_of_inputs(pipe):
    assert pipe({"text": SUM}) == pipe(SUM)
    assert pipe([{"text": SUM}, PHRASE, {"text": PHRASE}]) == pipe([SUM, PHRASE, PHRASE])
    assert pipe({"text": PHRASE, "en": SUM}, keys={"src_language": "en"}) == pipe(SUM)
    with pytest.raises(InputError, match="input 2 has no key 'text'; its keys: prompt; keys="):
        pipe([SUM, {"prompt": SUM}])


def test_batch_size_does_not_change_answers(pipe):
    assert pipe([SUM, PHRASE, SUM], 2) == pipe([SUM, PHRASE, SUM], batch_size=1) == pipe([SUM, PHRASE, SUM])
    with pytest.raises(ConfigError, match="batch_size is 0; give an integer of at least 1"):
        pipe(SUM, batch_size=0)


def test_without_special_tokens(pipe, model, tokenizer):
    ids = tokenizer.encode(STORY, add_special_tokens=False)
    assert ids != tokenizer.encode(STORY)
    (expected,) = model.generate(ids, max_new_tokens=5)
    (result,) = pipe(STORY, add_special_tokens=False, max_new_tokens=5)
    assert tokenizer.decode(expected, skip_special_tokens=True) == result["text_generation_text"][0]


def test_positional_arguments_as_mindformers_has_them(model, tokenizer):
    assert pipeline("text_generation", model, tokenizer, None, None, "ms")(SUM)[0]["text_generation_text"] == [
        ANSWERS[0]
    ]
    with pytest.raises(ConfigError, match="there is no backend 'pt'; known: ms"):
        pipeline("text_generation", model, tokenizer, backend="pt")
    with pytest.raises(ConfigError, match="no use for image_processor"):
        pipeline("text_generation", model, tokenizer, TextStreamer(tokenizer))


def test_a_base_streamer_can_be_subclassed(pipe):
    import inference

    class Collect(inference.BaseStreamer):
        def __init__(self):
            super().__init__()
            self.shown = []

        def on_finalized_text(self, text, stream_end=False):
            self.shown.append(text)

    streamer = Collect()
    (result,) = pipe(SUM, streamer=streamer)
    assert "".join(streamer.shown) == result["text_generation_text"][0]

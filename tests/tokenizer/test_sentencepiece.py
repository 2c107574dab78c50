"""sentencepiece models against sentencepiece itself, and the rules for added tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from examples import examples
from inference.tokenizer import Tokenizer, load_tokenizer
from inference.tokenizer.added_token import AddedToken
from inference.tokenizer.sentencepiece_tokenizer import NO_DUMMY_PREFIX, SentencePieceTokenizer
from inference.tokenizer.tokenizer_config import TokenizerConfig

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "tokenizers"
MODEL = (GOLDENS / "spm" / "tokenizer.model").read_bytes()
FIRST_PLAIN = 8  # ids below are control and user-defined symbols


@cache
def processor(without_prefix: bool = False) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=MODEL + (NO_DUMMY_PREFIX if without_prefix else b""))


@cache
def plain() -> Tokenizer:
    return SentencePieceTokenizer(MODEL)


@examples(300)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" aあ😀"), max_size=40))
def test_text_without_symbols_is_left_to_sentencepiece(text: str) -> None:
    if "<" in text:
        return
    ids = processor().encode(text)
    assert plain().encode(text) == [1, *ids]
    # sentencepiece takes U+2581 for a space, and there is no way back.
    assert plain().decode(ids) == text.replace("▁", " ")


@examples(300)
@given(st.lists(st.integers(FIRST_PLAIN, 499), max_size=30))
def test_decoding_is_sentencepieces(ids: list[int]) -> None:
    # A space written as a byte never starts an encoded text; transformers drops it there, sentencepiece does
    # not.
    assume(ids[:1] != [processor().piece_to_id("<0x20>")])
    assert plain().decode(ids) == processor().decode(ids)


def test_the_models_own_names_are_the_default() -> None:
    assert (plain().bos_token, plain().eos_token, plain().unk_token) == ("<s>", "</s>", "<unk>")
    assert plain().pad_token is None
    named = SentencePieceTokenizer(MODEL, TokenizerConfig(tokens={"bos_token": None, "eos_token": "<|end|>"}))
    assert named.bos_token_id is None
    assert named.eos_token_id == processor().piece_to_id("<|end|>")
    assert named.encode("a") == processor().encode("a")


def test_bos_and_eos() -> None:
    ids = processor().encode("the cat")
    config = TokenizerConfig(add_bos_token=False, add_eos_token=True)
    assert SentencePieceTokenizer(MODEL, config).encode("the cat") == [*ids, 2]
    assert plain().encode("the cat") == [1, *ids]
    assert plain().encode("the cat", add_special_tokens=False) == ids


def test_the_space_before_a_text() -> None:
    """Before the first part; with `legacy` before each; never with `add_prefix_space: false`."""
    end = processor().piece_to_id("<|end|>")
    with_space, without = processor().encode("the"), processor(True).encode("the")
    assert with_space != without
    ids = {
        legacy: SentencePieceTokenizer(MODEL, TokenizerConfig(legacy=legacy)).encode("the<|end|>the", False)
        for legacy in (False, True)
    }
    assert ids[False] == [*with_space, end, *without]
    assert ids[True] == [*with_space, end, *with_space]
    assert plain().encode("<|end|>the", False) == [end, *without]
    bare = SentencePieceTokenizer(MODEL, TokenizerConfig(add_prefix_space=False))
    assert bare.encode("the", False) == without
    assert bare.decode(processor(True).encode(" the")) == " the"


def test_an_added_token_can_replace_a_piece() -> None:
    """As chat models do with placeholder pieces."""
    piece = processor().id_to_piece(450)
    config = TokenizerConfig(added={450: AddedToken("<|im_start|>", special=True)})
    tokenizer = SentencePieceTokenizer(MODEL, config)
    assert piece != "<|im_start|>"
    assert tokenizer.token_to_id("<|im_start|>") == 450
    assert tokenizer.token_to_id(piece) is None
    assert tokenizer.encode("<|im_start|>", False) == [450]
    assert tokenizer.decode([450]) == ""
    assert tokenizer.decode([450], skip_special_tokens=False) == "<|im_start|>"


def test_new_special_tokens_get_ids_after_the_vocabulary() -> None:
    tokens = {"pad_token": "[PAD]", "eos_token": "[END]"}
    tokenizer = SentencePieceTokenizer(MODEL, TokenizerConfig(tokens=tokens, extra_special=("[X]", "</s>")))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (501, 500) or len(tokenizer) == 503
    assert {tokenizer.token_to_id(name) for name in ("[PAD]", "[END]", "[X]")} == {500, 501, 502}
    assert tokenizer.token_to_id("</s>") == 2
    assert tokenizer.decode([500, 501, 502, 2, 9999]) == ""


def test_the_longest_added_token_wins() -> None:
    config = TokenizerConfig(added={500: AddedToken("<a"), 501: AddedToken("<a>"), 502: AddedToken("<a>>")})
    tokenizer = SentencePieceTokenizer(MODEL, config)
    assert tokenizer.encode("<a>><a<a>", False) == [502, 500, 501]


def test_the_demo_tokenizer() -> None:
    """Ships with the package: chat tokens are symbols of the model, special by its config."""
    import inference

    tokenizer = load_tokenizer(Path(inference.__path__[0]) / "demo")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}], tokenize=False)
    assert text == "<s><|user|>What is 2+2?<|end|><|assistant|>"
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}])
    assert isinstance(ids, list)
    assert tokenizer.decode(ids) == "What is 2+2?"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.encode("Once upon a time")[0] == tokenizer.bos_token_id

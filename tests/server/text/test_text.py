"""Text <-> tokens: nothing half, nothing leaked, and the pieces of a stream are the plain text."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from decoding.contract.frames import Chunk
from decoding.contract.params import Request, StoppingParams
from decoding.contract.params.stopping import StopSequence
from server.answer.choice import Choice, joined
from server.errors import ApiError
from server.served import Served
from server.text.chat_template import Conversation
from server.text.stop_text import StopText
from server.text.tokenizer import INLINE_CHARS, LONG_CHARS, Tokenizer
from server.text.vocabulary import Vocabulary
from server.translate.plan import Shown
from tests.server.fake_engine import TEMPLATE, byte_tokenizer, make_served, speak
from tests.server.world import SECONDS, until

SERVED = make_served()
LETTERS = "abü日🙂 "


def choice_of(**shown: object) -> Choice:
    wanted = Shown(**shown)  # type: ignore[arg-type]
    return Choice(wanted, SERVED.eos_token_ids, SERVED.tokenizer.detokenizer())


def pieces_of(
    text: str, stops: tuple[str, ...], per_chunk: int = 1, include: bool = False, **stopping: int
) -> list[str]:
    """What a choice that wants to say `text`, byte for byte, gives out chunk by chunk."""
    alphabet = {piece: i for i, piece in enumerate(SERVED.tokenizer.token_bytes()) if len(piece) == 1}
    ids = [alphabet[bytes([byte])] for byte in text.encode()]
    params = StoppingParams(max_tokens=10**6, stop=tuple(stop.encode() for stop in stops), **stopping)
    outputs = speak(SERVED, Request((1,), stopping=params), ids, per_chunk=per_chunk)
    choice = choice_of(stops=stops, stop_text=include)
    return [choice.push(output.chunks[0]).text for output in outputs]


@given(st.text(LETTERS, max_size=40), st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_the_pieces_are_the_text_before_the_stop_that_completes_first(
    text: str, stops: list[str], per_chunk: int
) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    expected = text
    if ends:
        first = [stop for stop in stops if stop in text and text.find(stop) + len(stop) == min(ends)]
        expected = text[: min(min(ends) - len(stop) for stop in first)]
    assert "".join(pieces_of(text, tuple(stops), per_chunk)) == expected


def test_text_that_cannot_become_a_stop_is_not_held() -> None:
    assert pieces_of("abcabd", ("abd",)) == ["", "", "abc", "", "", ""]
    assert pieces_of("xyz", ("abd",)) == ["x", "y", "z"]


def test_a_stop_before_min_tokens_is_only_text() -> None:
    assert "".join(pieces_of("a.b.c.d", (".",), min_tokens=4)) == "a.b"
    assert "".join(pieces_of("a.b.c.d", (".",), per_chunk=7, min_tokens=5)) == "a.b.c"


def test_of_two_stops_in_one_token_the_one_that_begins_first_cuts() -> None:
    for stops in (("cd", "bcd"), ("bcd", "cd")):
        held = StopText(stops)
        held.push("abcd")
        assert held.cut() == "a"
    shown = StopText(("bc",), include=True)
    shown.push("abcd")
    assert shown.cut() == "abc"


def test_half_a_character_waits_and_is_dropped_at_the_end() -> None:
    detokenizer = SERVED.tokenizer.detokenizer()
    ids = SERVED.tokenizer.encode("🙂")
    assert [detokenizer.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert detokenizer.push(ids[-1]) == "🙂"


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    byte = {piece: i for i, piece in enumerate(SERVED.tokenizer.token_bytes())}
    ids = [byte[b"a"], byte[b"\xff"], byte[b"b"]]
    assert SERVED.tokenizer.decode(ids) == "a\ufffdb"
    assert SERVED.tokenizer.decode(SERVED.tokenizer.encode("🙂")[:-1]) == "\ufffd"


def test_ids_beyond_the_tokenizer_are_empty() -> None:
    assert SERVED.tokenizer.decode([10**6]) == ""
    assert SERVED.tokenizer.vocabulary.name(10**6) == ""


@given(st.lists(st.integers(0, SERVED.tokenizer.vocabulary.size - 1), max_size=30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_decoding_agrees_with_the_tokenizers_library(ids: list[int], skip: bool) -> None:
    reference = byte_tokenizer().decode(ids, skip_special_tokens=skip)
    assert SERVED.tokenizer.decode(ids, skip_special_tokens=skip) == reference


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_encoding_loses_nothing(text: str) -> None:
    assert SERVED.tokenizer.decode(SERVED.tokenizer.encode(text)) == text


def test_a_last_chunk_without_text_still_ends_the_choice() -> None:
    choice = choice_of()
    first, last = (
        choice.push(Chunk(0, SERVED.tokenizer.encode("ab"))),
        choice.push(Chunk(0, (), finish_reason="length")),
    )
    assert joined([first, last]).text == "ab"
    assert joined([first, last]).finish_reason == "length"


def sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """Llama 2's kind: ▁ for a space, <0xNN> for a byte, and a decoder that drops the first space."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁dog", "s", "a"]
    tokenizer = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_sentencepiece_tokens_stand_for_spaces_and_bytes() -> None:
    reference = sentencepiece_tokenizer()
    tokenizer = Tokenizer(reference)
    dog, e_acute = reference.token_to_id("▁dog"), [3 + 0xC3, 3 + 0xA9]
    ids = [1, reference.token_to_id("▁the"), dog, *e_acute, 2]
    assert tokenizer.decode(ids) == reference.decode(ids) == "the dogé"
    assert [tokenizer.token_bytes()[i] for i in ids] == [b"", b" the", b" dog", b"\xc3", b"\xa9", b""]


def test_a_continuation_keeps_its_first_space_and_an_answer_does_not() -> None:
    tokenizer = Tokenizer(sentencepiece_tokenizer())
    dog = sentencepiece_tokenizer().token_to_id("▁dog")
    assert tokenizer.detokenizer().push(dog) == " dog"
    assert tokenizer.detokenizer(at_start=True).text([1, dog, dog]) == "dog dog"


def test_an_unknown_decoder_is_asked_token_by_token() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    assert Vocabulary.of(tokenizer).shown == (b" a", b" b")


def end_of_word_tokenizer() -> tokenizers.Tokenizer:
    """The first GPT's kind: a suffix where a word ends."""
    words = {word: i for i, word in enumerate(["<unk>", "mat</w>", "the</w>", "at</w>", "he", ",</w>", "<x>"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(words, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.add_special_tokens(["<x>"])
    return tokenizer


@given(st.lists(st.integers(0, 6), max_size=12), st.booleans())
@settings(max_examples=100, deadline=None)
def test_words_with_an_end_keep_their_spaces(ids: list[int], skip: bool) -> None:
    reference = end_of_word_tokenizer()
    expected = reference.decode(ids, skip_special_tokens=skip)
    assert Tokenizer(reference).decode(ids, skip_special_tokens=skip) == expected


def test_a_continuation_begins_with_the_space_that_the_text_before_dropped() -> None:
    tokenizer = Tokenizer(end_of_word_tokenizer())
    assert tokenizer.detokenizer(behind=1).text([2, 3, 4]) == " the at he"
    assert tokenizer.detokenizer(behind=4).text([2, 3]) == "the at"


def test_a_stop_that_ends_with_a_words_space_is_found() -> None:
    tokenizer = Tokenizer(end_of_word_tokenizer())
    choice = Choice(Shown(stops=("the ",)), (), tokenizer.detokenizer())
    assert choice.push(Chunk(0, (1, 2), finish_reason="stop", stop_reason=StopSequence(0))).text == "mat "


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
@given(st.lists(st.sampled_from([0, 1, 3, 4]), max_size=1), st.lists(st.integers(0, 4), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_text_of_words_begins_without_a_space(decoder: object, first: list[int], more: list[int]) -> None:
    reference = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "##c": 2, "d": 3, "e": 4}, unk_token="a"))
    if decoder is not None:
        reference.decoder = decoder
    ids = [*first, *more] if first else []
    assert Tokenizer(reference).decode(ids) == reference.decode(ids)


def test_added_tokens_stand_for_their_own_text() -> None:
    """Letters of theirs may be in the alphabet that stands for bytes."""
    tokens = byte_tokenizer()
    added = ["ñandú", "čaj", "naïve", "日本"]
    tokens.add_tokens(added)
    tokenizer = Tokenizer(tokens)
    text = "a ñandú and čaj, naïve 日本 ñ"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.vocabulary.name(tokens.token_to_id(token)) for token in added] == added


async def test_long_texts_are_encoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    tokenizer, encode = make_served().tokenizer, Tokenizer._encode

    def noted(self: Tokenizer, *args: Any) -> Any:
        threads.append(threading.current_thread())
        return encode(self, *args)

    monkeypatch.setattr(Tokenizer, "_encode", noted)
    for length in (INLINE_CHARS, INLINE_CHARS + 1, LONG_CHARS + 1):
        await tokenizer.encode_all(["a" * length])
    inline, short, long = threads
    assert inline is threading.current_thread()
    assert len({inline, short, long}) == 3
    assert not [each for each in (short, long) if each.name.startswith("asyncio")]


async def test_no_text_waits_for_a_very_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encode = make_served().tokenizer, Tokenizer._encode
    go, begun = threading.Event(), []

    def slow(self: Tokenizer, texts: list[str], *args: Any) -> Any:
        begun.append(len(texts[0]))
        if len(texts[0]) > LONG_CHARS:
            assert go.wait(SECONDS)
        return encode(self, texts, *args)

    monkeypatch.setattr(Tokenizer, "_encode", slow)
    long = [asyncio.create_task(tokenizer.encode_all(["a" * (LONG_CHARS + 1)])) for _ in range(4)]
    await until(lambda: len(begun) == 1)
    for _ in range(3):
        await tokenizer.encode_all(["a" * (INLINE_CHARS + 1)])
    assert [length for length in begun if length > LONG_CHARS] == [LONG_CHARS + 1]
    go.set()
    await asyncio.gather(*long)


async def test_many_texts_are_encoded_in_batches_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encode = make_served().tokenizer, Tokenizer._encode
    texts = ["a" * 5, "b" * LONG_CHARS, "c" * (LONG_CHARS + 1), "d", "e" * (LONG_CHARS - 1), "f"]
    expected = encode(tokenizer, texts, True, True)
    batches = []

    def noted(self: Tokenizer, texts: list[str], *args: Any) -> Any:
        batches.append("".join(text[0] for text in texts))
        return encode(self, texts, *args)

    monkeypatch.setattr(Tokenizer, "_encode", noted)
    assert await tokenizer.encode_all(texts, with_starts=True) == expected
    assert batches == ["a", "b", "c", "de", "f"]


def write_model(directory: Path, config: dict[str, object], template: str | None = None) -> Tokenizer:
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return Tokenizer.from_directory(directory)


async def rendered(tokenizer: Tokenizer, content: str = "hi") -> str:
    return tokenizer.chat_text(Conversation([{"role": "user", "content": content}]))


async def test_the_template_is_read_from_either_file(tmp_path: Path) -> None:
    both = write_model(tmp_path, {"chat_template": "config"}, template="file")
    assert await rendered(both) == "file"
    (tmp_path / "chat_template.jinja").unlink()
    assert await rendered(Tokenizer.from_directory(tmp_path)) == "config"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "named"}]
    assert await rendered(write_model(tmp_path, {"chat_template": named})) == "named"


async def test_the_template_sees_the_special_tokens(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": None}
    tokenizer = write_model(tmp_path, config, template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert await rendered(tokenizer) == "<|im_start|>hi<|im_end|>"


async def test_the_template_has_the_helpers_of_hugging_face(tmp_path: Path) -> None:
    source = (
        "{% generation %}{{ {'a': '<é>'} | tojson }}{% endgeneration %}{{ strftime_now('%%') }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    assert await rendered(write_model(tmp_path, {}, source)) == '{"a": "<é>"}%01'


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ range(10**9) | list }}",
        "{{ raise_exception('no: ' + messages[0].content) }}",
    ],
)
async def test_a_template_that_misbehaves_is_a_400_that_shows_no_input(tmp_path: Path, source: str) -> None:
    tokenizer = write_model(tmp_path, {}, source)
    with pytest.raises(ApiError) as caught:
        await rendered(tokenizer, "s3cr3t")
    assert caught.value.status == 400
    assert "s3cr3t" not in caught.value.message


async def test_without_a_template_chat_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="no chat template"):
        await rendered(write_model(tmp_path, {}))


def test_content_is_data_and_never_a_template(tmp_path: Path) -> None:
    tokenizer = write_model(tmp_path, {}, TEMPLATE)
    assert "{{ 7 * 7 }}" in asyncio.run(rendered(tokenizer, "{{ 7 * 7 }}"))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_broken_tokenizer_file_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


def test_truncation_and_padding_of_the_file_do_not_apply(served: Served) -> None:
    truncating = byte_tokenizer()
    truncating.enable_truncation(3)
    truncating.enable_padding(length=50)
    assert Tokenizer(truncating).encode("a dog sleeps") == served.tokenizer.encode("a dog sleeps")

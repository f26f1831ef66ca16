import pytest

from loadtest.target import Target, base_url, dialect


def body(name: str, **fields: object) -> dict[str, object]:
    return Target(url="http://h", dialect=dialect(name), **fields).body("hi", 8)  # type: ignore[arg-type]


def test_a_request_is_greedy_streamed_and_asks_for_usage() -> None:
    assert body("openai", model="m") == {
        "model": "m",
        "prompt": "hi",
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_sends_the_prompt_as_a_user_message() -> None:
    fields = body("openai", endpoint="chat")
    assert fields["messages"] == [{"role": "user", "content": "hi"}]
    assert "prompt" not in fields


def test_without_a_model_the_field_is_left_out() -> None:
    assert "model" not in body("openai")


def test_dialects_ignore_eos_each_in_its_own_way() -> None:
    assert body("polydecode")["ignore_eos"] is True
    assert "ignore_eos" not in body("transformers")
    assert "eos_token_id" in str(body("transformers")["generation_config"])


def test_extra_fields_go_over_all_others_and_null_takes_one_out() -> None:
    fields = body("polydecode", extra={"ignore_eos": None, "temperature": 1, "num_beams": 4})
    assert "ignore_eos" not in fields
    assert (fields["temperature"], fields["num_beams"]) == (1, 4)


def test_the_key_is_sent_but_never_shown() -> None:
    target = Target(url="http://h", dialect=dialect("openai"), api_key="sesame")
    assert target.headers == {"Authorization": "Bearer sesame"}
    assert "sesame" not in repr(target)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_any_spelling_of_the_url_will_do(url: str) -> None:
    assert base_url(url) == "http://h:1"


def test_beams_are_asked_for_in_each_servers_own_words() -> None:
    ours = Target(url="http://h", dialect=dialect("polydecode")).body("hi", 8, beams=4)
    assert (ours["num_beams"], ours["n"], ours["stream"]) == (4, 4, True)
    theirs = Target(url="http://h", dialect=dialect("vllm")).body("hi", 8, beams=3)
    assert (theirs["n"], theirs["use_beam_search"]) == (3, True)
    assert "stream" not in theirs
    with pytest.raises(LookupError, match="no beam search"):
        Target(url="http://h", dialect=dialect("llama-cpp")).body("hi", 8, beams=2)

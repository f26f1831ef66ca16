"""The library's own part: forms of prompts and params, streams, threads, interrupts, and what is left afterwards."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

import decoding
import polydecode
from decoding.contract.params import Pooling, Sed
from decoding.engine.engine import Engine
from polydecode import (
    LLM,
    Assisted,
    Beam,
    BeamSample,
    BestFirst,
    BestOf,
    Contrastive,
    CotDecoding,
    Dola,
    Entropix,
    GroupBeam,
    Guided,
    InvalidRequest,
    KlGuided,
    ModelError,
    PromptLookup,
    Sampling,
    SamplingParams,
    SettingsError,
    TimedOut,
)
from polydecode.params import strategy_fields
from server.text.tokenizer import INLINE_CHARS
from tests.polydecode.conftest import SETTINGS

GREEDY = SamplingParams(temperature=0, max_tokens=8)
MESSAGES = [{"role": "user", "content": "one"}]
ENDLESS: dict[str, Any] = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}


def test_one_prompt_gives_one_result_and_a_list_a_list(llm: LLM) -> None:
    text, ids = llm.generate("one", GREEDY), llm.generate(llm.encode("one"), GREEDY)
    assert text.token_ids == ids.token_ids
    texts = llm.generate(["one", "two"], GREEDY)
    assert [each.token_ids for each in texts] == [text.token_ids, llm.generate("two", GREEDY).token_ids]
    assert [each.text for each in llm.generate([llm.encode("one")], GREEDY)] == [text.text]
    assert llm.chat(MESSAGES, GREEDY).text == llm.chat([MESSAGES, MESSAGES], GREEDY)[1].text
    assert llm.generate([], GREEDY) == []


def test_more_prompts_than_the_engine_is_given_at_once(tiny: Path) -> None:
    with LLM(str(tiny), **SETTINGS, max_rows=4) as small:
        found = small.generate([[i] for i in range(3, 33)], GREEDY)
        assert [each.prompt_token_ids for each in found] == [(i,) for i in range(3, 33)]
        assert found[20].token_ids == small.generate([23], GREEDY).token_ids
        assert small.used_pages == 0


def test_each_prompt_may_have_its_own_params_and_keywords_go_before(llm: LLM) -> None:
    found = llm.generate(["one"] * 2, [Beam(num_beams=3), GREEDY], max_tokens=3)
    assert [each.strategy for each in found] == ["beam", "greedy"]
    assert [len(each.token_ids) for each in found] == [3, 3]
    with pytest.raises(ValueError, match="3 of them for 2 prompts"):
        llm.generate(["one"] * 2, [GREEDY] * 3)


def test_sampling_params_are_checked_where_they_are_made() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'top_p'") as refused:
        SamplingParams(top_pp=0.5)  # type: ignore[call-arg]
    assert refused.value.param == "top_pp"
    with pytest.raises(InvalidRequest, match="top_p must be less than or equal to 1"):
        SamplingParams(top_p=2)


def test_values_may_be_pythons_and_names_others() -> None:
    fields: dict[str, Any] = {"max_new_tokens": 3, "dola_layers": (0, 2), "logit_bias": {5: 1}}
    assert SamplingParams(**fields).given == {"max_tokens": 3, "dola_layers": [0, 2], "logit_bias": {"5": 1.0}}


STRATEGY_PARAMS = [
    Sampling(n=2),
    BestOf(best_of=3),
    Beam(num_beams=3, early_stopping="never"),
    BeamSample(num_beams=2),
    GroupBeam(num_beams=4, num_beam_groups=2),
    BestFirst(num_beams=2),
    Contrastive(penalty_alpha=0.5, k=3),
    Dola(layers=(0, 1)),
    Guided(scale=2.0, negative_ids=(5, 6)),
    KlGuided(sigma=0.5, context_ids=(7,)),
    Entropix(top_k=5),
    CotDecoding(k=3),
    PromptLookup(num_tokens=3),
    Assisted(num_tokens=2),
]


@pytest.mark.parametrize("params", STRATEGY_PARAMS, ids=lambda params: params.NAME)
def test_a_strategys_own_params_come_out_as_they_went_in(params: Any, llm: LLM) -> None:
    (request,) = llm.plan(polydecode.llm.COMPLETIONS, 0, {"prompt": "one", **strategy_fields(params)}).plan.requests
    assert request.strategy == params


def test_ids_that_the_wire_has_as_a_text_are_refused_with_the_field_to_use() -> None:
    with pytest.raises(InvalidRequest, match=r"sed.question is given as a text: sed=\{'question': …\}"):
        strategy_fields(Sed(eval_ids=(1,), yes_id=2, no_id=3))
    with pytest.raises(InvalidRequest, match=r"cot_decoding.suffix is given as a text"):
        strategy_fields(CotDecoding(suffix_ids=(1,)))
    with pytest.raises(InvalidRequest, match="of no strategy that generates"):
        strategy_fields(Pooling())


def test_where_an_answer_goes_is_no_matter_of_params(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="stream has no meaning among the params"):
        llm.generate("one", SamplingParams(stream=True))


def test_fields_without_effect_are_warned_of(llm: LLM) -> None:
    with pytest.warns(UserWarning, match="without effect: user"):
        llm.generate("one", GREEDY, user="me")


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"num_beams": 3, "n": 2}, {"n": 2, "seed": 1, "stop": ["e"]}])
def test_a_streams_pieces_joined_are_the_plain_answer(fields: dict[str, Any], llm: LLM) -> None:
    asked = {"max_tokens": 10, "logprobs": 1, "trace": True, **fields}
    plain = llm.generate(["one two", "three"], **asked)
    text, ids, reasons, traces = defaultdict(str), defaultdict(tuple), {}, 0
    for delta in llm.generate(["one two", "three"], stream=True, **asked):
        place = delta.prompt, delta.choice
        text[place] += delta.text
        ids[place] += delta.token_ids
        traces += len(delta.trace)
        if delta.finish_reason is not None:
            assert reasons.setdefault(place, delta.finish_reason) == delta.finish_reason
    for prompt, generation in enumerate(plain):
        for choice in generation.choices:
            place = prompt, choice.index
            assert (text[place], ids[place], reasons[place]) == (choice.text, choice.token_ids, choice.finish_reason)
    assert traces == sum(len(each.trace) for each in plain)


def test_trace_tells_the_steps(llm: LLM) -> None:
    traced = llm.trace("one", num_beams=2, max_tokens=3)
    assert [step.kind for step in traced.trace][:2] == ["beams", "beams"]


def test_a_chats_parts_are_told_apart(llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    forced: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    answer = llm.chat(MESSAGES, temperature=0, max_tokens=400, **forced)
    (call,) = answer.choices[0].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("look", {})
    assert answer.finish_reason == "tool_calls"


def test_nothing_runs_where_one_of_many_prompts_is_refused(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "tick", lambda _: pytest.fail("it ran"))
    with pytest.raises(InvalidRequest):
        llm.generate(["one", "two"], [GREEDY, {"top_p": 7}])


def test_a_timeout_ends_the_call(llm: LLM) -> None:
    with pytest.raises(TimedOut):
        llm.generate("one", timeout=0.001, **ENDLESS)


def test_a_call_from_a_running_event_loop(llm: LLM) -> None:
    async def cell() -> str:
        return llm.generate(long, GREEDY, max_tokens=2).text

    long = " the slee laz dog" * 260  # so long that it is encoded in a thread
    assert len(long) > INLINE_CHARS
    assert asyncio.run(cell()) == llm.generate(long, GREEDY, max_tokens=2).text


def test_a_stream_left_early_frees_its_pages(llm: LLM) -> None:
    for _ in llm.generate("one", stream=True, **ENDLESS):
        break
    assert llm.used_pages == 0


def test_a_stream_goes_on_while_another_call_runs(llm: LLM) -> None:
    stream = llm.generate("one", GREEDY, stream=True)
    first = next(stream)
    other = llm.generate("two", GREEDY)
    text = first.text + "".join(delta.text for delta in stream)
    assert (text, other.text) == (llm.generate("one", GREEDY).text, llm.generate("two", GREEDY).text)


def test_calls_from_several_threads_share_the_batch(llm: LLM) -> None:
    expected = {prompt: llm.generate([prompt], GREEDY).token_ids for prompt in range(3, 9)}
    found: dict[int, tuple[int, ...]] = {}
    threads = [
        threading.Thread(target=lambda p=p: found.update({p: llm.generate([p], GREEDY).token_ids})) for p in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Who runs in a shell's background is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_the_tick_and_the_next_call_works(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, tick, ended = llm.generate("two", GREEDY).token_ids, Engine.tick, []

    def interrupted(engine: Engine) -> Any:
        signal.raise_signal(signal.SIGINT)  # in the middle of it
        outputs = tick(engine)
        ended.append(len(outputs))
        return outputs

    monkeypatch.setattr(Engine, "tick", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one"] * 3, num_beams=3, **{**ENDLESS, "temperature": 1})
    monkeypatch.undo()
    assert len(ended) == 1
    assert llm.used_pages == 0
    assert llm.generate("two", GREEDY).token_ids == expected


def test_a_stream_thrown_away_in_mid_tick_is_cancelled_after_it(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run anywhere, in the engine too."""
    streams = [llm.generate("one", stream=True, **ENDLESS)]
    next(streams[0])
    tick, cancelled, is_ticking = Engine.tick, [], []
    cancel = Engine.cancel

    def ticked(engine: Engine) -> Any:
        is_ticking.append(True)
        streams.clear()
        try:
            return tick(engine)
        finally:
            is_ticking.clear()

    def noted(engine: Engine, request_id: int) -> None:
        cancelled.append(bool(is_ticking))
        cancel(engine, request_id)

    monkeypatch.setattr(Engine, "tick", ticked)
    monkeypatch.setattr(Engine, "cancel", noted)
    llm.generate("two", GREEDY)
    assert cancelled == [False]


def test_there_is_no_second_process_even_for_grammars(llm: LLM) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert llm.generate("one", structured={"choice": ["yes", "no"]}).text in ("yes", "no")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_settings_are_the_servers_and_are_checked_likewise(tiny: Path) -> None:
    with pytest.raises(SettingsError, match="port has no meaning without a server"):
        LLM(str(tiny), port=80)
    with pytest.raises(SettingsError, match="unknown setting 'dtyp'; did you mean 'dtype'"):
        LLM(str(tiny), dtyp="float32")
    with pytest.raises(SettingsError, match=r"dtype \(argument\): Input should be"):
        LLM(str(tiny), dtype="float12")
    with pytest.raises(ModelError, match="allow-download"):
        LLM("nobody/nothing")


def test_a_progress_bar_is_for_terminals_or_for_those_who_ask(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["one", "two"], GREEDY)
    assert capsys.readouterr().err == ""
    llm.generate(["one", "two"], GREEDY, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_the_strategies_are_the_catalogues(llm: LLM) -> None:
    assert {each["id"] for each in llm.strategies()["data"] if each["available"]} >= {"beam", "assisted", "dola"}


def test_decode_is_the_inverse_of_encode(llm: LLM) -> None:
    assert llm.decode(llm.encode("one two")) == "one two"


def test_every_name_is_there_and_decoding_points_to_it() -> None:
    assert all(getattr(polydecode, name) is not None for name in polydecode.__all__)
    assert sorted(polydecode.__all__) == sorted(polydecode._HOMES)
    assert decoding.LLM is polydecode.LLM
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = polydecode.nothing


def test_importing_it_loads_nothing_yet() -> None:
    program = "import sys, polydecode; print([name for name in ('torch', 'fastapi', 'server') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plugins_bring_their_fields(tiny: Path) -> None:
    lookahead = Path(__file__).parents[2] / "docs/plugin/polydecode_examples/lookahead.py"
    with LLM(str(tiny), plugin=[str(lookahead)], **SETTINGS) as own:
        found = own.generate("one", max_tokens=6, lookahead={"k": 3})
        assert len(found.token_ids) <= 6
        assert found.effective["plugins"] == {"lookahead": "1.0"}
        with pytest.raises(InvalidRequest, match=r"lookahead\.k"):
            own.generate("one", lookahead={"k": 0})
        assert "lookahead" in json.dumps(own.strategies())

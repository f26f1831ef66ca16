"""From flags and the model's files to what is served: names, chat template, formats of calls, defaults."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from decoding.contract.frames import Loaded, Start
from server.__main__ import main
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.served import Served
from server.settings.sections import QueueSettings
from server.settings.settings import load
from server.startup import Startup
from server.text.chat_template import Conversation
from server.text.tokenizer import Tokenizer
from server.worker.mailbox import LoadListener, Mailbox
from server.worker.model_files import ModelError
from server.worker.progress import LineDisplay
from tests.server.fake_engine import FakeBatcher, byte_tokenizer, make_app, saying
from tests.server.world import model_directory

QWEN = "{{ tools }}<tool_call></tool_call>{# <think></think> #}{{ messages[0].content }}"
RECOMMENDED = {"temperature": 0.25, "top_p": 0.5, "top_k": 7, "do_sample": True, "eos_token_id": 3}


@dataclass
class Loader:
    """Stands for the mailbox: the worker has loaded at once."""

    batcher: Batcher

    async def run(self, start: asyncio.Future[Start], _: LoadListener, _opening: object) -> None:
        await start
        self.batcher.worker_loaded(Loaded(308, 512, (301,), 4, 16, 8, "cpu", "float32", "TinyForCausalLM"))


def model(path: Path, template: str | None = None, generation: Mapping[str, Any] | str | None = None) -> Path:
    directory = model_directory(path)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps(generation)
        (directory / "generation_config.json").write_text(text)
    return directory


async def served(directory: Path, *flags: str) -> Served:
    batcher = Batcher(QueueSettings(), Metrics("test"))
    loader = Loader(batcher)
    settings = load(["--model", str(directory), *flags], {}).settings
    startup = Startup(settings, batcher, LineDisplay(io.StringIO()), Tokenizer.from_directory)
    await startup.run(cast(Mailbox, loader))
    return batcher.served


async def answered(model: Served, url: str, /, **fields: Any) -> dict[str, Any]:
    transport = httpx.ASGITransport(make_app(FakeBatcher(model, saying(model, "Hi"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await (client.post(url, json=fields) if fields else client.get(url))
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_model_has_all_the_names_it_was_given(tmp_path: Path) -> None:
    both = await served(model(tmp_path / "m"), "--served-model-name", "one", "--served-model-name", "two")
    assert [each["id"] for each in (await answered(both, "/v1/models"))["data"]] == ["one", "two"]
    for name in ("one", "two"):
        assert (await answered(both, f"/v1/models/{name}"))["id"] == name
        assert (await answered(both, "/v1/completions", prompt="a", model=name))["model"] == name


async def test_the_formats_are_those_of_the_template_unless_told_otherwise(tmp_path: Path) -> None:
    directory = model(tmp_path / "m", QWEN)
    for flags, tools, reasoning in (
        ((), "hermes", True),
        (("--tool-parser", "mistral", "--reasoning-parser", "none"), "mistral", False),
        (("--tool-parser", "none"), None, True),
    ):
        supports = (await answered(await served(directory, *flags), "/v1/models/m"))["supports"]
        assert (supports["tool_parser"], supports["reasoning"]) == (tools, reasoning)
        assert supports["tools_in"] == ("chat_template" if tools else None)
    bare = await served(model(tmp_path / "bare"))
    assert (bare.tools, bare.has_reasoning) == (None, False)


async def test_a_template_from_a_file_replaces_the_model_s(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ bos_token }}<think></think>{{ messages[0].content | upper }}")
    directory = model(tmp_path / "m", QWEN)
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>"}')
    other = await served(directory, "--chat-template", str(file))
    text = other.tokenizer.chat_text(Conversation([{"role": "user", "content": "hi"}]))
    assert text == "<|im_start|><think></think>HI"
    assert other.has_reasoning


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("source", [None, b"{% if %}", b"\xff"])
def test_a_bad_template_file_fails_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: bytes | None
) -> None:
    monkeypatch.setattr("server.observe.logs.configure", lambda *_, **__: None)  # the process is not the server's
    file = tmp_path / "t.jinja"
    if source is not None:
        file.write_bytes(source)
    assert main(["--model", str(model(tmp_path / "m")), "--chat-template", str(file)]) == 1
    assert "t.jinja" in capsys.readouterr().err


async def test_a_template_from_a_file_runs_in_the_sandbox(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    other = await served(model(tmp_path / "m"), "--chat-template", str(file))
    transport = httpx.ASGITransport(make_app(FakeBatcher(other, saying(other, "Hi"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = {"messages": [{"role": "user", "content": "a"}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400


async def test_defaults_are_openai_s_unless_the_model_s_are_asked_for(tmp_path: Path) -> None:
    directory = model(tmp_path / "m", generation=RECOMMENDED)
    plain = await served(directory)
    effective = (await answered(plain, "/v1/completions", prompt="a"))["decoding"]["effective"]
    assert not {"temperature", "top_p", "top_k"} & effective.keys()
    assert (await answered(plain, "/v1/models/m"))["generation_defaults"] == {}
    own = await served(directory, "--generation-defaults", "model")
    defaults = {"temperature": 0.25, "top_p": 0.5, "top_k": 7}
    assert (await answered(own, "/v1/models/m"))["generation_defaults"] == defaults
    effective = (await answered(own, "/v1/completions", prompt="a", top_p=0.9))["decoding"]["effective"]
    assert {name: effective[name] for name in defaults} == {"temperature": 0.25, "top_p": 0.9, "top_k": 7}


async def test_a_default_yields_to_a_strategy_that_it_has_no_meaning_in(tmp_path: Path) -> None:
    own = await served(model(tmp_path / "m", generation=RECOMMENDED), "--generation-defaults", "model")
    for fields in ({"num_beams": 2}, {"temperature": 0}, {"penalty_alpha": 0.6, "top_k": 4}):
        decoding = (await answered(own, "/v1/completions", prompt="a", **fields))["decoding"]
        assert decoding["effective"].get("temperature", 0) == 0
        assert decoding["strategy"] != "sampling"


@pytest.mark.parametrize("generation", ["{", "[]", {"temperature": -1}, {"top_k": "many"}])
async def test_recommendations_that_cannot_be_fail_at_the_start(tmp_path: Path, generation: Any) -> None:
    directory = model(tmp_path / "m", generation=generation)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        await served(directory, "--generation-defaults", "model")

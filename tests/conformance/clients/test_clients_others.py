"""Clients of others, one real round trip each: langchain, litellm, instructor, pydantic-ai, `llm`, openai for Node.

Those that are no part of the `clients` extra run in environments of their own (`clients/environment.py`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from tests.conformance.clients.environment import HERE, run_client
from tests.running_server import RunningServer, clean_environment

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


class City(BaseModel):
    name: str


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def skip_unless_taken(server: RunningServer, field: dict[str, Any]) -> None:
    """Skips where the server says of a chat's field that it is not supported yet."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, **field}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    if answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported_field":
        pytest.skip(f"{next(iter(field))} is not supported yet")


def test_langchain_chats_streams_completes_and_embeds(smol_server: RunningServer) -> None:
    langchain = pytest.importorskip("langchain_openai")
    place = {"base_url": f"{smol_server.url}/v1", "api_key": "none", "model": MODEL, "max_retries": 0}
    for options in ({}, {"use_responses_api": True}):
        chat = langchain.ChatOpenAI(**place, temperature=0, max_tokens=8, **options)
        said = chat.invoke(QUESTION)
        assert said.text == ANSWER
        assert said.usage_metadata["output_tokens"] == 8
        chunks = list(chat.stream(QUESTION))
        assert len(chunks) > 3
        assert "".join(chunk.text for chunk in chunks) == ANSWER
    assert "Paris" in langchain.OpenAI(**place, temperature=0, max_tokens=4).invoke("The capital of France is")
    embeddings = langchain.OpenAIEmbeddings(**place, check_embedding_ctx_length=False)
    near, same, far = embeddings.embed_documents(["A dog barks.", "A dog barks.", "Inflation rose."])
    assert near == same != far


async def test_pydantic_ai_runs_an_agent_over_chat_and_over_responses(smol_server: RunningServer) -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    provider = providers.OpenAIProvider(base_url=f"{smol_server.url}/v1", api_key="none")
    for kind in (models.OpenAIChatModel, models.OpenAIResponsesModel):
        settings = {"temperature": 0, "max_tokens": 8}
        agent = pydantic_ai.Agent(kind(MODEL, provider=provider), model_settings=settings)
        run = await agent.run(QUESTION)
        assert run.output == ANSWER
        async with agent.run_stream(QUESTION) as streamed:
            pieces = [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]
        assert "".join(pieces) == ANSWER


def test_langchain_gets_structured_output(smol_server: RunningServer) -> None:
    langchain = pytest.importorskip("langchain_openai")
    skip_unless_taken(smol_server, {"response_format": {"type": "json_object"}})
    place = {"base_url": f"{smol_server.url}/v1", "api_key": "none", "model": MODEL, "max_retries": 0}
    chat = langchain.ChatOpenAI(**place, temperature=0, max_tokens=64)
    city = chat.with_structured_output(City, method="json_schema").invoke(QUESTION)
    assert isinstance(city, City)


def test_langchain_gets_a_tool_call(smol_server: RunningServer) -> None:
    langchain = pytest.importorskip("langchain_openai")
    skip_unless_taken(smol_server, {"tools": [TOOL]})
    place = {"base_url": f"{smol_server.url}/v1", "api_key": "none", "model": MODEL, "max_retries": 0}
    chat = langchain.ChatOpenAI(**place, temperature=0, max_tokens=64).bind_tools([TOOL], tool_choice="add")
    assert [call["name"] for call in chat.invoke("Add.").tool_calls] == ["add"]
    streamed = sum(chat.stream("Add."), start=langchain.chat_models.base.AIMessageChunk(content=""))
    assert [call["name"] for call in streamed.tool_calls] == ["add"]


async def test_pydantic_ai_calls_a_tool_and_returns_an_object(smol_server: RunningServer) -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    skip_unless_taken(smol_server, {"tools": [TOOL]})
    provider = providers.OpenAIProvider(base_url=f"{smol_server.url}/v1", api_key="none")
    settings = {"temperature": 0, "max_tokens": 64}
    agent = pydantic_ai.Agent(
        models.OpenAIChatModel(MODEL, provider=provider), output_type=City, model_settings=settings
    )
    assert isinstance((await agent.run(QUESTION)).output, City)


@pytest.mark.parametrize("flags", [(), ("--no-stream",)], ids=["streamed", "plain"])
def test_the_llm_command_line_talks_to_it(smol_server: RunningServer, tmp_path: Path, flags: tuple[str, ...]) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f'- model_id: smol\n  model_name: {MODEL}\n  api_base: "{smol_server.url}/v1"\n'
    )
    command = [sys.executable, "-m", "llm", "-m", "smol", "-o", "temperature", "0", "-o", "max_tokens", "8"]
    # No plugins: the embedded model's package is one, without the library it would run on.
    own = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}
    done = subprocess.run(
        [*command, *flags, QUESTION], env={**clean_environment(), **own}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, ANSWER), done.stderr


def test_langchain_s_standard_tests_pass(smol_server: RunningServer) -> None:
    requirements = ["langchain-tests>=1.0", "langchain-openai>=1.0"]
    run_client("langchain", requirements, "langchain_standard.py", smol_server.url, MODEL)


def test_litellm_chats_streams_completes_and_embeds(smol_server: RunningServer) -> None:
    run_client("litellm", ["litellm>=1.80", "instructor>=1.12"], "litellm_client.py", smol_server.url, MODEL)


def test_instructor_makes_an_object_of_an_answer(smol_server: RunningServer) -> None:
    skip_unless_taken(smol_server, {"response_format": {"type": "json_object"}})
    run_client("litellm", ["litellm>=1.80", "instructor>=1.12"], "instructor_client.py", smol_server.url, MODEL)


def test_the_openai_npm_client_works(smol_server: RunningServer, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is missing")
    for name in ("package.json", "package-lock.json", "node_client.mjs"):
        shutil.copy(HERE / name, tmp_path)
    install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("the package cannot be installed here")
    command = ["node", "node_client.mjs", smol_server.url, MODEL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr

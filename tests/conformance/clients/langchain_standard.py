"""langchain's own standard tests of a chat model, against this server. URL MODEL.

Left out is what needs images, audio or files in messages, which no model here takes, and what asks for reasoning that a
model of 135 M parameters does not do: that it chooses by itself to call a tool, or the right one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestServer(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["SERVER_MODEL"],
            "base_url": os.environ["SERVER_URL"] + "/v1",
            "api_key": "none",
            "temperature": 0,
            "max_completion_tokens": 400,
            "extra_body": {"repetition_penalty": 1.3},  # it would go round in circles in a JSON string
            "stream_usage": True,
        }

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}


WANTED = (
    "test_invoke or test_ainvoke or test_stream or test_astream or test_batch or test_abatch or test_conversation"
    " or test_double_messages or test_usage_metadata or test_usage_metadata_streaming or test_stop_sequence"
    " or test_structured_output or test_message_with_name or test_stream_time"
)
UNWANTED = "image or audio or pdf or anthropic or cache or tool_calling or v3 or model_override"

if __name__ == "__main__":
    os.environ["SERVER_URL"], os.environ["SERVER_MODEL"] = sys.argv[1:]  # pytest imports this file anew
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--tb=short", "-o", "asyncio_mode=auto"]
    options += ["-o", "asyncio_default_test_loop_scope=session"]  # langchain keeps one HTTP client for all tests
    sys.exit(pytest.main([__file__, "-k", f"({WANTED}) and not ({UNWANTED})", *options]))

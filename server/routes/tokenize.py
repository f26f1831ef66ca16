"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.reply import JsonResponse
from server.answer.respond import naming_ignored
from server.errors import ApiError
from server.http.disconnect import until_disconnect
from server.queue.batcher import Batcher
from server.served import Served
from server.settings.limits import Limits
from server.translate.bounds import bad_field
from server.translate.conversation import conversation
from server.translate.logits import check_ids
from server.translate.prompts import refuse_longer
from server.translate.translate import resolve_model
from server.wire.answers import Text, Tokens
from server.wire.body import Ignored, parse, read_body
from server.wire.examples import DETOKENIZE, TOKENIZE
from server.wire.openapi import operation
from server.wire.requests import DetokenizeRequest, TokenizeRequest
from server.work_queue import WorkQueue

MAX_WAITING = 64  # small ones take a millisecond


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()
    threads = WorkQueue("tokenizing", 1, MAX_WAITING)  # one: it takes no second core, and memory for one text

    def tokenize_request(body: dict[str, Any]) -> tuple[TokenizeRequest, Ignored]:
        wire, ignored = parse(TokenizeRequest, body)
        if (wire.prompt is None) == (wire.messages is None):
            raise ApiError(400, "either prompt or messages is required, and not both", param="prompt")
        if wire.messages is not None and len(wire.messages) > limits.max_messages:
            raise ApiError(400, f"messages must have at most {limits.max_messages} entries", param="messages")
        return wire, ignored

    @routes.post(
        "/tokenize",
        **operation(
            "Turn a text or a chat into tokens",
            "The ids that the same prompt or messages would have as a request.",
            Tokens,
            wire=TokenizeRequest,
            examples=TOKENIZE,
        ),
    )
    async def tokenize(request: Request) -> Response:
        wire, ignored = await read_body(request, limits, tokenize_request)
        served = batcher.served
        resolve_model(wire.model, served)
        answer = await until_disconnect(request.receive, threads.run(_tokens, wire, served, limits))
        return naming_ignored(answer, ignored)

    @routes.post(
        "/detokenize",
        **operation(
            "Turn tokens into text",
            "Special tokens are shown by their names.",
            Text,
            wire=DetokenizeRequest,
            examples=DETOKENIZE,
        ),
    )
    async def detokenize(request: Request) -> Response:
        wire, ignored = await read_body(request, limits, partial(parse, DetokenizeRequest))
        served = batcher.served
        resolve_model(wire.model, served)
        answer = await until_disconnect(request.receive, threads.run(_text, wire, served, limits))
        return naming_ignored(answer, ignored)

    return routes


def _tokens(wire: TokenizeRequest, served: Served, limits: Limits) -> JsonResponse:
    """A prompt gets its special tokens unless told otherwise; a chat template brings its own."""
    if wire.messages is None:
        field, text, special = "prompt", wire.prompt or "", wire.add_special_tokens is not False
    else:
        refuse_longer(max((message.said for message in wire.messages), key=len), "messages", served)
        text = served.tokenizer.chat_text(conversation(wire, wire.messages, wire.tools or (), served))
        field, special = "messages", bool(wire.add_special_tokens)
    refuse_longer(text, field, served)
    most = _most(served, limits)
    ids = served.tokenizer.encode_up_to(most, text, add_special_tokens=special)
    if ids is None:
        raise bad_field(field, f"must have at most {most} tokens")
    strings = [served.tokenizer.vocabulary.name(i) for i in ids] if wire.return_token_strs else None
    return JsonResponse(Tokens(len(ids), served.max_model_len, ids, strings))


def _text(wire: DetokenizeRequest, served: Served, limits: Limits) -> JsonResponse:
    most = _most(served, limits)
    if len(wire.tokens) > most:
        raise bad_field("tokens", f"must have at most {most} entries")
    check_ids("tokens", wire.tokens, served)
    return JsonResponse(Text(served.tokenizer.decode(wire.tokens, skip_special_tokens=False)))


def _most(served: Served, limits: Limits) -> int:
    return max(limits.max_tokenize_tokens, served.max_model_len, served.max_prompt_len)

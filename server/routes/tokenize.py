"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.admission import Batcher
from server.body import parse, read_body
from server.conversation import conversation
from server.errors import ApiError
from server.examples import DETOKENIZE, TOKENIZE
from server.fields import Fields, sort_fields
from server.limits import Limits
from server.logits import check_ids
from server.openapi import operation
from server.protocol import DetokenizeRequest, TokenizeRequest
from server.replies import Text, Tokens
from server.reply import JsonResponse
from server.respond import naming_ignored
from server.served import Served
from server.translate import resolve_model


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()

    def tokenize_request(body: dict[str, Any]) -> tuple[TokenizeRequest, Fields]:
        fields = sort_fields(body, TokenizeRequest.model_fields, {})
        wire = parse(TokenizeRequest, fields)
        if (wire.prompt is None) == (wire.messages is None):
            raise ApiError(400, "either prompt or messages is required, and not both", param="prompt")
        if wire.messages is not None and len(wire.messages) > limits.max_messages:
            raise ApiError(400, f"messages must have at most {limits.max_messages} entries", param="messages")
        return wire, fields

    def detokenize_request(body: dict[str, Any]) -> tuple[DetokenizeRequest, Fields]:
        fields = sort_fields(body, DetokenizeRequest.model_fields, {})
        return parse(DetokenizeRequest, fields), fields

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
        wire, fields = await read_body(request, limits, tokenize_request)
        served = batcher.served
        resolve_model(wire.model, served)
        ids = await _token_ids(wire, served)
        strings = [served.tokenizer.vocabulary.name(i) for i in ids] if wire.return_token_strs else None
        answer = JsonResponse(Tokens(len(ids), served.max_model_len, ids, strings))
        return naming_ignored(answer, fields.ignored)

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
        wire, fields = await read_body(request, limits, detokenize_request)
        served = batcher.served
        resolve_model(wire.model, served)
        check_ids("tokens", wire.tokens, served)
        answer = JsonResponse(Text(served.tokenizer.decode(wire.tokens, skip_special_tokens=False)))
        return naming_ignored(answer, fields.ignored)

    return routes


async def _token_ids(wire: TokenizeRequest, served: Served) -> tuple[int, ...]:
    """A prompt gets its special tokens unless told otherwise; a chat template brings its own."""
    if wire.messages is not None:
        text = served.tokenizer.chat_text(conversation(wire, wire.messages, wire.tools or (), served))
        special = bool(wire.add_special_tokens)
        return (await served.tokenizer.encode_all([text], add_special_tokens=special))[0].ids
    special = wire.add_special_tokens is not False
    return (await served.tokenizer.encode_all([wire.prompt or ""], add_special_tokens=special))[0].ids

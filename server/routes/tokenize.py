"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.admission import Batcher
from server.body import parse, read_object
from server.errors import ApiError
from server.fields import sort_fields
from server.limits import Limits
from server.logits import check_ids
from server.openapi import described
from server.protocol import DetokenizeRequest, TokenizeRequest
from server.replies import Text, Tokens
from server.reply import JsonResponse
from server.served import Served
from server.translate import resolve_model, template_messages


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()

    @routes.post("/tokenize", openapi_extra=described(TokenizeRequest, Tokens))
    async def tokenize(request: Request) -> JsonResponse:
        fields = sort_fields(await read_object(request, limits), TokenizeRequest.model_fields, {})
        wire = parse(TokenizeRequest, fields.known)
        if (wire.prompt is None) == (wire.messages is None):
            raise ApiError(400, "either prompt or messages is required, and not both", param="prompt")
        if wire.messages is not None and len(wire.messages) > limits.max_messages:
            raise ApiError(400, f"messages must have at most {limits.max_messages} entries", param="messages")
        served = batcher.served
        resolve_model(wire.model, served)
        ids = await _token_ids(wire, served)
        strings = [served.tokenizer.vocabulary.name(i) for i in ids] if wire.return_token_strs else None
        return JsonResponse(Tokens(len(ids), served.max_model_len, ids, strings))

    @routes.post("/detokenize", openapi_extra=described(DetokenizeRequest, Text))
    async def detokenize(request: Request) -> JsonResponse:
        fields = sort_fields(await read_object(request, limits), DetokenizeRequest.model_fields, {})
        wire = parse(DetokenizeRequest, fields.known)
        served = batcher.served
        resolve_model(wire.model, served)
        check_ids("tokens", wire.tokens, served)
        return JsonResponse(Text(served.tokenizer.decode(wire.tokens, skip_special_tokens=False)))

    return routes


async def _token_ids(wire: TokenizeRequest, served: Served) -> tuple[int, ...]:
    """A prompt gets its special tokens unless told otherwise; a chat template brings its own."""
    if wire.messages is not None:
        return await served.tokenizer.encode_chat(
            template_messages(wire.messages),
            add_generation_prompt=wire.add_generation_prompt is not False,
            add_special_tokens=bool(wire.add_special_tokens),
        )
    special = wire.add_special_tokens is not False
    return (await served.tokenizer.encode_all([wire.prompt or ""], add_special_tokens=special))[0].ids

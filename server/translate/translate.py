"""What a request asks for -> its plan: decoding params for each prompt, and what the answer shows.

Runs behind `bounds.asked_within`, with a place in the queue reserved and the model's tokenizer and sizes at hand.
Raises ApiError; nothing that passes can be refused by the engine for its form.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from decoding.contract.params import InvalidParam, LogprobsParams, Pooling, Request, StoppingParams
from server.errors import ApiError, too_long
from server.served import Served
from server.text.message_text import MessageForm
from server.text.reasoning import is_unfinished, opened_by
from server.translate.asked import Asked, Body
from server.translate.bounds import bad_field, refused, stops_of
from server.translate.conversation import chat_text
from server.translate.effective import effective_params
from server.translate.encoder import check_encoder_fields, check_source, decoder_ids
from server.translate.generation_defaults import max_tokens, min_tokens, with_defaults
from server.translate.logits import check_ids, logits_params
from server.translate.plan import Plan, Prompt, Shown
from server.translate.prompts import completion_prompts, embedding_prompts, refuse_longer
from server.translate.structure import grammar_of
from server.translate.texts import bad_word_ids, derived, latent_thoughts, pause_ids
from server.translate.tool_grammar import message_grammar
from server.translate.tool_use import ToolUse, effective_tools, enforced, tool_use
from server.wire.requests import ChatRequest, CompletionRequest, Decoding, EmbeddingRequest

DEFAULT_MAX_TOKENS = 16


def resolve_model(name: str | None, served: Served) -> str:
    """The name to answer under. Raises ApiError 404."""
    if name is None:
        return served.names[0]
    if name not in served.names:
        message = "no such model; GET /v1/models lists the ones served"
        raise ApiError(404, message, param="model", code="model_not_found")
    return name


async def completion_plan(asked: Asked[CompletionRequest], served: Served) -> Plan:
    asked, model = _begun(asked, served)
    wire = asked.wire
    prompts = await completion_prompts(wire, served)
    scored = wire.logprobs if wire.echo else None
    logprobs = LogprobsParams(
        output=wire.logprobs, prompt=_larger(scored, wire.prompt_logprobs), mode=wire.logprobs_mode or "raw"
    )
    shown = replace(_shown(wire), echo=bool(wire.echo), logprobs=wire.logprobs)
    limit = TokenLimit(_asked_tokens(wire), DEFAULT_MAX_TOKENS, "prompt", served.generation_defaults)
    plan = await _plan(asked, served, prompts, limit, model=model, logprobs=logprobs, shown=shown)
    return _with_stops(plan, served)


async def chat_plan(asked: Asked[ChatRequest], served: Served) -> Plan:
    asked, model = _begun(asked, served)
    wire = asked.wire
    refuse_longer(max((message.said for message in wire.messages), key=len), "messages", served)
    use, last = tool_use(wire, served), wire.messages[-1].said
    text = await chat_text(wire, wire.messages, (wire.tools or ()) if use else (), served)
    refuse_longer(text, "messages", served)
    (encoded,) = await served.tokenizer.encode_all([text], add_special_tokens=False)
    top = (wire.top_logprobs or 0) if wire.logprobs else None
    logprobs = LogprobsParams(output=top, prompt=wire.prompt_logprobs, mode=wire.logprobs_mode or "raw")
    limit = TokenLimit(_asked_tokens(wire), served.max_model_len, "messages", served.generation_defaults)
    shown = replace(_shown(wire), logprobs=top)
    plan = await _plan(asked, served, (Prompt(encoded.ids),), limit, model=model, logprobs=logprobs, shown=shown)
    try:
        if use is not None:
            if use.needs_grammar or plan.requests[0].logits.grammar is not None:
                use = await enforced(use, served)
            plan = replace(plan, effective=plan.effective | effective_tools(wire))
        is_thinking = opened_by(text) or (bool(wire.continue_final_message) and is_unfinished(last))
        return _with_stops(_with_message(plan, use, served, is_thinking=is_thinking), served)
    except InvalidParam as invalid:
        raise refused(invalid) from None


def _begun(asked: Asked[Body], served: Served) -> tuple[Asked[Body], str]:
    """With the model's defaults, and the name to answer under. Raises ApiError."""
    model = resolve_model(asked.wire.model, served)
    if not served.has_head:
        message = f"{served.architecture} was saved without its language head: it serves /v1/embeddings alone"
        raise ApiError(400, message, param="model", code="no_language_head")
    return with_defaults(asked, served.generation_defaults), model


async def embedding_plan(wire: EmbeddingRequest, served: Served) -> Plan:
    model = resolve_model(wire.model, served)
    if served.encoder is not None:
        raise bad_field("input", "has no embedding from an encoder-decoder model")
    prompts = await embedding_prompts(wire, served)
    requests = tuple(
        Request(
            prompt.ids,
            Pooling(served.pool_by),
            stopping=StoppingParams(max_tokens=0),
            cache_salt=wire.cache_salt or "",
            priority=wire.priority or 0,
        )
        for prompt in prompts
    )
    check_known(requests, "input", served)
    effective = {"pool_by": served.pool_by}
    return Plan(model, prompts, requests, Pooling.NAME, effective, Shown(), wire.timeout)


def _with_message(plan: Plan, use: ToolUse | None, served: Served, *, is_thinking: bool) -> Plan:
    """The plan of a chat, with what its text is taken apart for and held to. Raises InvalidParam."""
    if use is None and not served.has_reasoning:
        return plan
    logits = plan.requests[0].logits
    if use is None and logits.grammar is not None and logits.grammar.kind != "json_schema":
        return plan  # the form leaves no room for reasoning
    functions = use.functions if use else frozenset[str]()
    form = MessageForm(use.form if use else None, functions, served.has_reasoning, is_thinking)
    grammar = message_grammar(use, logits.grammar, served, is_thinking=is_thinking)
    requests = tuple(replace(each, logits=replace(logits, grammar=grammar)) for each in plan.requests)
    return replace(plan, message=form, requests=requests)


def _with_stops(plan: Plan, served: Served) -> Plan:
    """The plan with its stops looked for in the text that the answer shows, and those that name a special token also
    where it is hidden: clients send the model's own end of turn to be safe."""
    stops, tokenizer = plan.shown.stops, served.tokenizer
    if not stops:
        return plan
    markers = plan.message.markers if plan.message is not None else frozenset[str]()
    bare = stops if plan.shown.special_tokens else tuple(tokenizer.bare(stop, markers) for stop in stops)
    looked_for: dict[str, Any] = {
        "shows_special": plan.shown.special_tokens,
        "shown_ids": tokenizer.ids_of(sorted(markers)),
        "named_stops": tuple(i for i, stop in enumerate(stops) if bare[i] != stop),
    }
    requests = tuple(replace(each, stopping=replace(each.stopping, **looked_for)) for each in plan.requests)
    return replace(plan, shown=replace(plan.shown, bare_stops=bare), requests=requests)


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """max_tokens as asked, the default without it, and the field to blame when the context is too short for both.

    recommended: the model's own defaults, which go before the other one.
    """

    asked: int | None
    default: int
    field: str
    recommended: Mapping[str, Any]

    def within(self, request: Request, context: int) -> int:
        """max_tokens: what was asked, or the default as far as the context goes. Raises ApiError 400."""
        num_prompt = len(request.prompt_ids) + request.num_beside
        taken = request.num_opened + request.strategy.num_behind
        told = f"{num_prompt} in the {self.field}" + (
            f", {taken} with the strategy's own" if taken > num_prompt else ""
        )
        if self.asked is None:
            if taken >= context:
                raise too_long(context, f"your request resulted in {taken} tokens ({told})", self.field)
            most = max_tokens(self.recommended, len(request.prompt_ids))
            return min(self.default if most is None else most, context - taken)
        total = taken + self.asked
        if total > context:
            needed = f"you requested {total} tokens ({told}, {self.asked} in the completion)"
            raise too_long(context, needed, self.field)
        return self.asked


def _asked_tokens(wire: CompletionRequest | ChatRequest) -> int | None:
    return wire.max_tokens if wire.max_completion_tokens is None else wire.max_completion_tokens


async def _plan(
    asked: Asked[Decoding],
    served: Served,
    prompts: tuple[Prompt, ...],
    limit: TokenLimit,
    *,
    model: str,
    logprobs: LogprobsParams,
    shown: Shown,
) -> Plan:
    wire = asked.wire
    seeds = _seeds(wire.seed, len(prompts))
    check_encoder_fields(asked, served)
    check_source(max(len(prompt.ids) for prompt in prompts), limit.field, served)
    try:
        opened = await _requests(asked, served, prompts, logprobs)
        requests = tuple(
            replace(each, seed=seed, stopping=_stopping(asked, served, each, limit))
            for each, seed in zip(opened, seeds, strict=True)
        )
    except InvalidParam as invalid:
        raise refused(invalid) from None
    first = requests[0]
    check_known(requests, limit.field, served)
    _check_scores(wire, requests, logprobs, served)
    _check_masks(first, served)
    effective = effective_params(first, asked, shown)
    effective |= {"timeout": wire.timeout} if wire.timeout is not None else {}
    effective["seed"] = seeds[0] if len(set(seeds)) == 1 else seeds
    return Plan(model, prompts, requests, asked.strategy.name, effective, shown, wire.timeout)


def _seeds(asked: int | None, count: int) -> list[int]:
    """A given seed is every prompt's, as if each had come alone; drawn ones differ, or equal prompts would agree."""
    return [secrets.randbits(63) for _ in range(count)] if asked is None else [asked % 2**64] * count


async def _requests(
    asked: Asked[Decoding], served: Served, prompts: Sequence[Prompt], logprobs: LogprobsParams
) -> list[Request]:
    """A request per prompt, but for seed and stopping. Raises ApiError, InvalidParam."""
    wire = asked.wire
    own = await derived(asked, served)
    logits = logits_params(asked, await bad_word_ids(wire.bad_words or (), served), served)
    logits = replace(logits, grammar=await grammar_of(wire, served))
    pauses = await pause_ids(wire, served)
    opening = await decoder_ids(wire, served)
    return [
        Request(
            prompt_ids=opening or prompt.ids,
            source_ids=prompt.ids if opening else (),
            strategy=asked.params_for(prompt.ids, own, served.tokenizer.vocabulary.special_ids),
            logits=logits,
            logprobs=logprobs,
            cache_salt=wire.cache_salt or "",
            priority=wire.priority or 0,
            pause_ids=pauses,
            latent=latent_thoughts(wire, served),
            trace=bool(wire.trace),
        )
        for prompt in prompts
    ]


def _stopping(asked: Asked[Decoding], served: Served, request: Request, limit: TokenLimit) -> StoppingParams:
    wire = asked.wire
    check_ids("stop_token_ids", wire.stop_token_ids, served)
    most = limit.within(request, served.max_model_len)
    least = wire.min_new_tokens if wire.min_tokens is None else wire.min_tokens
    if least is None:
        least = min(most, min_tokens(asked, served.generation_defaults, len(request.prompt_ids)))
    return StoppingParams(
        max_tokens=most,
        min_tokens=least,
        stop=tuple(stop.encode() for stop in stops_of(wire)),
        stop_token_ids=tuple(wire.stop_token_ids or ()),
        ignore_eos=bool(wire.ignore_eos),
    )


def _shown(wire: Decoding) -> Shown:
    options = wire.stream_options
    return Shown(
        num_choices=wire.num_choices,
        stops=stops_of(wire),
        prompt_logprobs=wire.prompt_logprobs,
        token_ids=bool(wire.return_token_ids),
        special_tokens=wire.skip_special_tokens is False,
        stop_text=bool(wire.include_stop_str_in_output),
        stream=bool(wire.stream),
        usage_chunk=bool(options and options.include_usage),
        usage_always=bool(options and options.continuous_usage_stats),
        obfuscated=bool(options and options.include_obfuscation),
    )


def check_known(requests: Sequence[Request], field: str, served: Served) -> None:
    """A tokenizer may know more tokens than the model. Raises ApiError 400."""
    if any(request.highest_token_id >= served.vocab_size for request in requests):
        raise bad_field(field, "holds a token of the tokenizer that the model does not have")


def _check_scores(wire: Decoding, requests: Sequence[Request], logprobs: LogprobsParams, served: Served) -> None:
    """Every choice bears the scores of its prompt. Raises ApiError 400."""
    if logprobs.prompt is None:
        return
    count = wire.num_choices * sum(len(request.prompt_ids) for request in requests) * (logprobs.prompt + 1)
    if count > served.max_prompt_scores:
        field = "prompt_logprobs" if wire.prompt_logprobs is not None else "logprobs"
        message = f"with n and the prompts asks for {count} scores, more than {served.max_prompt_scores} in one answer"
        raise bad_field(field, message)


def _check_masks(request: Request, served: Served) -> None:
    """min_tokens masks the ends of the text; with allowed_token_ids something else must be left to draw."""
    allowed = request.logits.allowed_token_ids
    masked = {*served.eos_token_ids, *request.stopping.stop_token_ids}
    if allowed is not None and request.stopping.min_tokens > 0 and masked.issuperset(allowed):
        raise bad_field("allowed_token_ids", "leaves nothing to draw while min_tokens masks the end of the text")


def _larger(left: int | None, right: int | None) -> int | None:
    return max((value for value in (left, right) if value is not None), default=None)

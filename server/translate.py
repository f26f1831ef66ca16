"""Wire request -> decoding params: the one file that speaks both languages.

Runs behind `bounds.check_limits`, with a place in the queue reserved and the model's tokenizer and sizes at hand.
Raises ApiError; nothing that passes can be refused by the engine for its form.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from decoding.params import (
    BestOf,
    InvalidParam,
    LogitsParams,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from server.bounds import bad_field, stops_of
from server.effective import effective_params, strategy_name
from server.errors import ApiError, too_long
from server.plan import Plan, Prompt, Shown
from server.prompts import completion_prompts
from server.protocol import ChatRequest, CompletionRequest, Decoding, Message
from server.served import Served

DEFAULT_MAX_TOKENS = 16
TEMPLATE_FIELDS = {"role", "content", "name", "tool_call_id"}


def resolve_model(asked: str | None, served: Served) -> str:
    """The name to answer under. Raises ApiError 404."""
    if asked is None:
        return served.names[0]
    if asked not in served.names:
        message = "no such model; GET /v1/models lists the ones served"
        raise ApiError(404, message, param="model", code="model_not_found")
    return asked


async def completion_plan(wire: CompletionRequest, served: Served) -> Plan:
    resolve_model(wire.model, served)
    prompts = await completion_prompts(wire, served)
    scored = wire.logprobs if wire.echo else None
    logprobs = LogprobsParams(
        output=wire.logprobs, prompt=_larger(scored, wire.prompt_logprobs), mode=wire.logprobs_mode or "raw"
    )
    shown = replace(_shown(wire), echo=bool(wire.echo), logprobs=wire.logprobs)
    limit = TokenLimit(wire.max_tokens, DEFAULT_MAX_TOKENS, "prompt")
    return _plan(wire, served, prompts, limit, logprobs=logprobs, shown=shown)


async def chat_plan(wire: ChatRequest, served: Served) -> Plan:
    resolve_model(wire.model, served)
    longest = max((message.content for message in wire.messages), key=len)
    if served.tokenizer.fewest_tokens(longest) > served.max_model_len:
        raise too_long(served.max_model_len, "the messages alone are longer", "messages")
    prompt = Prompt(await served.tokenizer.encode_chat(template_messages(wire.messages)))
    top = (wire.top_logprobs or 0) if wire.logprobs else None
    logprobs = LogprobsParams(output=top, prompt=wire.prompt_logprobs, mode=wire.logprobs_mode or "raw")
    asked = wire.max_completion_tokens if wire.max_completion_tokens is not None else wire.max_tokens
    limit = TokenLimit(asked, served.max_model_len, "messages")
    return _plan(wire, served, (prompt,), limit, logprobs=logprobs, shown=replace(_shown(wire), logprobs=top))


def template_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages as chat templates know them."""
    return [message.model_dump(include=TEMPLATE_FIELDS, exclude_none=True) for message in messages]


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """max_tokens as asked, the default without it, and the field to blame when the context is too short for both."""

    asked: int | None
    default: int
    field: str

    def within(self, num_prompt: int, context: int) -> int:
        """max_tokens: what was asked, or the default as far as the context goes. Raises ApiError 400."""
        if self.asked is None:
            if num_prompt >= context:
                raise too_long(context, f"your {self.field} resulted in {num_prompt} tokens", self.field)
            return min(self.default, context - num_prompt)
        total = num_prompt + self.asked
        if total > context:
            parts = f"{num_prompt} in the {self.field}, {self.asked} in the completion"
            raise too_long(context, f"you requested {total} tokens ({parts})", self.field)
        return self.asked


def _plan(
    wire: Decoding,
    served: Served,
    prompts: tuple[Prompt, ...],
    limit: TokenLimit,
    *,
    logprobs: LogprobsParams,
    shown: Shown,
) -> Plan:
    seeds = _seeds(wire.seed, len(prompts))
    max_tokens = [limit.within(len(prompt.ids), served.max_model_len) for prompt in prompts]
    try:
        first = _request(wire, served, prompts[0], max_tokens[0], logprobs)
        requests = tuple(
            replace(first, prompt_ids=prompt.ids, seed=seed, stopping=replace(first.stopping, max_tokens=most))
            for prompt, seed, most in zip(prompts, seeds, max_tokens, strict=True)
        )
    except InvalidParam as invalid:
        raise ApiError(400, str(invalid), param=invalid.param) from None
    _check_masks(first, served)
    effective = effective_params(first, shown) | ({} if wire.timeout is None else {"timeout": wire.timeout})
    effective["seed"] = seeds[0] if len(set(seeds)) == 1 else seeds
    model = resolve_model(wire.model, served)
    return Plan(model, prompts, requests, strategy_name(first), effective, shown, wire.timeout)


def _seeds(asked: int | None, count: int) -> list[int]:
    """A given seed is every prompt's, as if each had come alone; drawn ones differ, or equal prompts would agree."""
    return [secrets.randbits(63) for _ in range(count)] if asked is None else [asked % 2**64] * count


def _request(wire: Decoding, served: Served, prompt: Prompt, max_tokens: int, logprobs: LogprobsParams) -> Request:
    return Request(
        prompt_ids=prompt.ids,
        strategy=_strategy(wire),
        logits=_logits(wire, served),
        stopping=_stopping(wire, served, max_tokens),
        logprobs=logprobs,
        cache_salt=wire.cache_salt or "",
        priority=wire.priority or 0,
    )


def _strategy(wire: Decoding) -> StrategyParams:
    n = wire.n or 1
    if wire.best_of is None or (wire.best_of == n and wire.best_of_rank is None):
        return Sampling(n=n)
    return BestOf(n=n, best_of=wire.best_of, rank_by=wire.best_of_rank or "mean")


def _logits(wire: Decoding, served: Served) -> LogitsParams:
    top_k = max(wire.top_k or 0, 0)
    bias = {int(token_id): value for token_id, value in (wire.logit_bias or {}).items()}
    check_ids("logit_bias", list(bias), served)
    check_ids("allowed_token_ids", wire.allowed_token_ids, served)
    return LogitsParams(
        temperature=_or(wire.temperature, 1.0),
        top_k=top_k if top_k < served.vocab_size else 0,
        top_p=_or(wire.top_p, 1.0),
        min_p=_or(wire.min_p, 0.0),
        repetition_penalty=_or(wire.repetition_penalty, 1.0),
        frequency_penalty=_or(wire.frequency_penalty, 0.0),
        presence_penalty=_or(wire.presence_penalty, 0.0),
        logit_bias=tuple(sorted((token_id, float(value)) for token_id, value in bias.items() if value)),
        allowed_token_ids=None if wire.allowed_token_ids is None else tuple(sorted(set(wire.allowed_token_ids))),
        sampler_order=wire.sampler_order or "hf",
    )


def _stopping(wire: Decoding, served: Served, max_tokens: int) -> StoppingParams:
    check_ids("stop_token_ids", wire.stop_token_ids, served)
    return StoppingParams(
        max_tokens=max_tokens,
        min_tokens=wire.min_tokens or wire.min_new_tokens or 0,
        stop=tuple(stop.encode() for stop in stops_of(wire)),
        stop_token_ids=tuple(wire.stop_token_ids or ()),
        ignore_eos=bool(wire.ignore_eos),
    )


def _shown(wire: Decoding) -> Shown:
    options = wire.stream_options
    return Shown(
        num_choices=wire.n or 1,
        stops=stops_of(wire),
        prompt_logprobs=wire.prompt_logprobs,
        token_ids=bool(wire.return_token_ids),
        special_tokens=wire.skip_special_tokens is False,
        stop_text=bool(wire.include_stop_str_in_output),
        stream=bool(wire.stream),
        usage_chunk=bool(options and options.include_usage),
        usage_always=bool(options and options.continuous_usage_stats),
    )


def _check_masks(request: Request, served: Served) -> None:
    """min_tokens masks the ends of the text; with allowed_token_ids something else must be left to draw."""
    allowed = request.logits.allowed_token_ids
    masked = {*served.eos_token_ids, *request.stopping.stop_token_ids}
    if allowed is not None and request.stopping.min_tokens > 0 and masked.issuperset(allowed):
        raise bad_field("allowed_token_ids", "leaves nothing to draw while min_tokens masks the end of the text")


def check_ids(field: str, token_ids: Sequence[int] | None, served: Served) -> None:
    """Raises ApiError 400 unless every id lies in the vocabulary."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < served.vocab_size:
        raise bad_field(field, f"must hold token ids below {served.vocab_size}")


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _larger(left: int | None, right: int | None) -> int | None:
    return max((value for value in (left, right) if value is not None), default=None)

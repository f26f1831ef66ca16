"""What a model with an encoder takes from a request: the prompt is its source, and its decoder begins on its own.

Applies what `table.py` says of encoders. Raises ApiError 400, InvalidParam.
"""

from __future__ import annotations

from decoding.contract.params import InvalidParam
from server.errors import too_long
from server.served import Served
from server.translate.asked import Asked
from server.translate.bounds import bad_field
from server.translate.table import ENCODER_EXCLUSIONS, ENCODER_FIELDS
from server.wire.requests import CompletionRequest, Decoding

_WITH_ENCODER = "has no meaning with this encoder-decoder model"


def check_encoder_fields(asked: Asked[Decoding], served: Served) -> None:
    """Refuse what has no meaning with such a model, or without."""
    keys = asked.keys
    if served.encoder is None:
        for key in ENCODER_FIELDS:
            if key in keys:
                raise bad_field(key, "has no meaning: the model has no encoder")
        return
    for exclusion in ENCODER_EXCLUSIONS:
        for key in exclusion.keys:
            others = [other for other in exclusion.others if other in keys]
            if key in keys and (others or not exclusion.others):
                together = f" together with {others[0]}" if others else ""
                raise bad_field(keys[key], f"{_WITH_ENCODER}{together}: {exclusion.reason}")


def check_source(num_tokens: int, field: str, served: Served) -> None:
    encoder = served.encoder
    if encoder is not None and num_tokens > encoder.max_source_len:
        raise too_long(encoder.max_source_len, f"the source has {num_tokens} tokens", field)


async def decoder_ids(wire: Decoding, served: Served) -> tuple[int, ...]:
    """What the decoder begins with: the model's start token, unless the prompt for it has it already. Empty where there
    is no encoder."""
    if served.encoder is None:
        return ()
    start = served.encoder.decoder_start_token_id
    ids = await _decoder_prompt(wire, served)
    return ids if ids[:1] == (start,) else (start, *ids)


async def _decoder_prompt(wire: Decoding, served: Served) -> tuple[int, ...]:
    given = wire.decoder_prompt if isinstance(wire, CompletionRequest) else None
    if given is None:
        return ()
    if isinstance(given, str):
        if served.tokenizer.fewest_tokens(given) > served.max_model_len:
            raise too_long(served.max_model_len, "the decoder_prompt alone is longer", "decoder_prompt")
        return (await served.tokenizer.encode_all([given], add_special_tokens=False))[0].ids
    if given and not 0 <= min(given) <= max(given) < served.vocab_size:
        raise InvalidParam("decoder_prompt", f"must hold token ids below {served.vocab_size}")
    return tuple(given)

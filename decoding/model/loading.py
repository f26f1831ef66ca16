"""Any model that can be served, from a local Hugging Face directory: picks the kind by its configuration."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForSeq2SeqLM

from decoding.contract.quantize import Quantize
from decoding.model import model
from decoding.model.checkpoint import load_weights
from decoding.model.model import Model, resolve_device, resolve_dtype
from decoding.model.rewrite import Progress
from decoding.model.seq2seq.model import Seq2SeqModel, check_config, wrap
from decoding.model.support import UnsupportedModel


def load(
    path: str,
    *,
    device: str,
    dtype: str,
    quantize: Quantize = "none",
    progress: Progress,
    is_batch_invariant: bool = False,
) -> Model | Seq2SeqModel:
    """Safetensors only, no remote code, no network. Raises UnsupportedModel."""
    config = model.read_config(path)
    if not getattr(config, "is_encoder_decoder", False):
        return model.load(
            path,
            device=device,
            dtype=dtype,
            quantize=quantize,
            progress=progress,
            is_batch_invariant=is_batch_invariant,
        )
    check_config(config)
    place = resolve_device(device)
    if quantize != "none":
        raise UnsupportedModel(str(config.model_type), "encoder-decoder models are not quantised")
    if is_batch_invariant and place.type != "cpu":
        raise UnsupportedModel(str(config.model_type), "encoder-decoder models are not batch invariant on a GPU")
    numbers = resolve_dtype(dtype, place, config)
    seq2seq_lm: Any = load_weights(AutoModelForSeq2SeqLM, path, config, numbers, progress).to(place)
    progress("loading weights", 1.0)
    return wrap(seq2seq_lm, progress=progress)

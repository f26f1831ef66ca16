"""Any model that can be served, from a local Hugging Face directory or from one that transformers has loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from decoding.attention.choice import AttentionMaker, default_attention, uniform_attention
from decoding.contract.quantize import Quantize
from decoding.device import resolve_device
from decoding.dtype import choose_dtype
from decoding.model import causal
from decoding.model.agreement import Agreement
from decoding.model.checkpoint import load_weights
from decoding.model.compatibility import UnsupportedModel, check_class, check_config, trials
from decoding.model.graphs import Capture
from decoding.model.model import Model
from decoding.model.prepare import choose
from decoding.model.quantize import check_machine
from decoding.model.replace_modules import Progress
from decoding.model.seq2seq import build as seq2seq


def _silent(_phase: str, _fraction: float) -> None:
    return None


def load(
    path: str,
    *,
    device: str,
    dtype: str,
    quantize: Quantize = "none",
    progress: Progress = _silent,
    is_batch_invariant: bool = False,
) -> Model:
    """Safetensors only, no remote code, no network. Raises UnsupportedModel."""
    progress("reading configuration", 0.0)
    config = read_config(path)
    check_config(config)
    place = resolve_device(device)
    if config.is_encoder_decoder:
        _check_seq2seq(config, place, quantize, is_batch_invariant=is_batch_invariant)
    check_machine(quantize, place, dtype, is_batch_invariant=is_batch_invariant)
    chosen = choose_dtype(dtype, place, config, quantize)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    lm: Any = load_weights(auto, path, config, chosen.numbers, progress).to(place)
    progress("loading weights", 1.0)
    model = wrap(lm, quantize=quantize, progress=progress, is_batch_invariant=is_batch_invariant)
    model.info = replace(model.info, dtype_reason=chosen.reason)
    return model


@torch.inference_mode()
def wrap(
    lm: Any,
    *,
    quantize: Quantize = "none",
    progress: Progress = _silent,
    attention: AttentionMaker | None = None,
    capture: Capture | None = None,
    is_batch_invariant: bool = False,
) -> Model:
    """Turn a loaded PreTrainedModel into ours. Its modules are replaced: it has no other use after.

    attention: None: by the device and by what is installed. capture: how decode steps are recorded; None: by CUDA
    graphs where the backend can be, elsewhere not at all. is_batch_invariant: a row's bits must not depend on the
    batch. Raises UnsupportedModel where that cannot be had.
    """
    check_config(lm.config)
    check_class(lm)
    lm.eval()
    recipe = choose(lm, quantize, is_batch_invariant=is_batch_invariant)
    make = attention or (uniform_attention if is_batch_invariant else default_attention)
    with trials(type(lm).__name__):
        recipe.change_weights(lm)
        agreement = Agreement(lm, rounds_inputs=recipe.rounds_inputs)
        if lm.config.is_encoder_decoder:
            model = seq2seq.build(lm, recipe, agreement, make, progress=progress)
        else:
            model = causal.build(lm, recipe, agreement, make, capture=capture, progress=progress)
        agreement.check(model)
    return model


def read_config(path: str) -> Any:
    """Raises ValueError where the model comes with code."""
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except StrictDataclassError as error:  # its first line does not say what is wrong
        raise ValueError(f"config.json: {str(error).strip().splitlines()[-1].strip()}") from error
    except ValueError as error:
        if "trust_remote_code" in str(error):  # what it advises does not exist here
            raise ValueError("the model needs code of its own, and only transformers' is ever run") from None
        raise


def _check_seq2seq(config: Any, device: torch.device, quantize: Quantize, *, is_batch_invariant: bool) -> None:
    if quantize != "none":
        raise UnsupportedModel(str(config.model_type), "encoder-decoder models are not quantised")
    if is_batch_invariant and device.type != "cpu":
        raise UnsupportedModel(str(config.model_type), "encoder-decoder models are not batch invariant on a GPU")

"""A transformers causal LM that runs packed batches over paged attention.

Owns the loaded weights and the way into them: tokens -> hidden states -> logits. Which rows are in a batch, and where
their pages are, it is told (`Batch`); how attention is computed is the backend's. Model code is transformers' own:
our attention comes in through its attention interface, our linears by replacing modules (`rewrite.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from decoding.attention.choice import AttentionMaker, default_attention, uniform_attention
from decoding.attention.interface import AttentionBackend, Batch, CapturableAttention, DecodeInputs
from decoding.contract.quantize import COMPUTES_IN, Quantize
from decoding.device import to_device
from decoding.kernels import cpu as kernels
from decoding.model.checkpoint import has_head, load_weights
from decoding.model.graphs import Capture, CudaCapture, DecodeGraphs
from decoding.model.linear import weight_bytes
from decoding.model.plug import PluggedAttention, carrying, register, trace
from decoding.model.quantize import ROUNDED, check_machine, check_model, round_linears
from decoding.model.rewrite import (
    NotRowExact,
    Progress,
    RowExactProducts,
    bare_products,
    make_batch_invariant,
    make_fast,
    make_row_exact,
)
from decoding.model.support import Agreement, UnsupportedModel, check_class, check_config, position_limit, trials
from decoding.model.torchao_weights import quantise_linears

__all__ = ["Hidden", "Model", "ModelInfo", "UnsupportedModel", "load", "wrap"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """vocab_size is the width of the logits; max_model_len counts positions, prompt and output together.

    hidden_size: of the states that the output matrix reads. ties_embeddings: the output matrix is the embedding.
    reads_layers: the states between layers have that width, too. has_head: there is an output matrix of its own.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    hidden_size: int
    num_layers: int
    ties_embeddings: bool
    dtype: torch.dtype
    device: torch.device
    architecture: str
    reads_layers: bool = True
    has_head: bool = True


@dataclass(frozen=True, slots=True)
class Hidden:
    """last: after the final norm. layers: the hidden states asked for, by transformers' index (0 is the embeddings).
    probed: scaled scores of the last layer for the last query of every probed row."""

    last: torch.Tensor  # [T, hidden]
    layers: dict[int, torch.Tensor]  # [T, hidden] each
    probed: dict[int, torch.Tensor]  # row of the batch -> [heads, keys]


class Model:
    """One loaded model. Not for concurrent use: attention writes its pages as it goes.

    is_compiled: nothing but small operations is left to torch, and its threads are better not called.
    """

    def __init__(
        self,
        causal_lm: Any,
        info: ModelInfo,
        attention: AttentionBackend,
        plugged: PluggedAttention,
        *,
        is_compiled: bool = False,
        capture: Capture | None = None,
    ) -> None:
        self.info = info
        self.is_compiled = is_compiled
        self.attention = attention
        self._plugged = plugged
        self._base: nn.Module = causal_lm.base_model
        self._embedding: nn.Module = causal_lm.get_input_embeddings()
        self._lm_head: nn.Module = causal_lm.get_output_embeddings()
        self._head = headless(causal_lm)
        needs_mode = info.device.type == "cpu" and any(bare_products(causal_lm))
        self._products: AbstractContextManager[Any] = RowExactProducts() if needs_mode else nullcontext()
        self._graphs = None if capture is None else DecodeGraphs(self._decode, capture, info.device)

    @torch.inference_mode()
    def forward(self, batch: Batch, layers: tuple[int, ...] = (), *, shift: int = 0) -> Hidden:
        """Run the batch's tokens, writing their keys and values into its slots.

        shift: the model is told that the whole of every row lies so many positions further on.
        A vector of `batch.embeds` is what the model accepts as `inputs_embeds`: it takes the place of the embedding
        module's output, so Gemma expects it scaled already and Granite scales it itself.
        """
        if self._graphs is not None and not layers and not shift:
            replayed = self._graphs.run(batch, cast(CapturableAttention, self.attention).generation)
            if replayed is not None:
                return Hidden(replayed, {}, {})
        device = self.info.device
        plan = self.attention.plan(batch)
        ids = batch.ids_on(device)[None]
        inputs = {"inputs_embeds": self._embed(ids, batch)} if batch.embeds else {"input_ids": ids}
        kept: dict[int, torch.Tensor] = {}
        positions = to_device(batch.positions + shift, device)[None]
        bound = carrying(self._plugged.bind(self.attention, plan))
        with self._products, self._keeping(layers, kept), bound as keywords:
            out = self._base(**inputs, position_ids=positions, use_cache=False, **keywords)
        last: torch.Tensor = out.last_hidden_state[0]
        if self.info.num_layers in layers:
            kept[self.info.num_layers] = last
        return Hidden(last, kept, self.attention.probed(plan))

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab] float32
        """The logits the model itself would give, soft caps and scalings included."""
        with self._products:
            logits: torch.Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits.float()

    @torch.inference_mode()
    def project(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab] float32
        """The output matrix alone: DoLa's premature logits."""
        with self._products:
            logits: torch.Tensor = self._lm_head(hidden)
        return logits.float()

    @property
    def weight_bytes(self) -> int:
        """Of the linears and the output matrix as they are held: what a decode step reads of the weights."""
        modules = (*self._base.modules(), *self._lm_head.modules())
        return sum(weight_bytes(module) for module in modules)

    def _decode(self, inputs: DecodeInputs) -> Callable[[], torch.Tensor]:
        """The forward of one token a row, as something to be recorded: its plan is made now, its work done later."""
        attention = cast(CapturableAttention, self.attention)
        bound = self._plugged.bind(attention, attention.decode_plan(inputs))

        def run() -> torch.Tensor:  # [R, hidden]
            ids, positions = inputs.token_ids[None], inputs.positions[None]
            with self._products, carrying(bound) as keywords:
                out = self._base(input_ids=ids, position_ids=positions, use_cache=False, **keywords)
            last: torch.Tensor = out.last_hidden_state[0]
            return last

        return run

    def _embed(self, ids: torch.Tensor, batch: Batch) -> torch.Tensor:  # [1, T] -> [1, T, hidden]
        embeds: torch.Tensor = self._embedding(ids).clone()
        for token, vector in batch.embeds.items():
            embeds[0, token] = vector.to(embeds)
        return embeds

    def _keeping(self, layers: tuple[int, ...], kept: dict[int, torch.Tensor]) -> ExitStack:
        """While entered, the inputs of the asked decoder layers are kept: hidden_states[i] is what layer i receives."""
        stack = ExitStack()
        if layers:
            blocks = decoder_layers(self._base, self.info.num_layers)
            for index in set(layers) - {self.info.num_layers}:
                handle = blocks[index].register_forward_pre_hook(_keeper(index, kept), with_kwargs=True)
                stack.callback(handle.remove)
        return stack


def _keeper(index: int, kept: dict[int, torch.Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[index] = (args[0] if args else kwargs["hidden_states"])[0]

    return keep


def decoder_layers(base: nn.Module, num_layers: int) -> nn.ModuleList:
    """The base model's stack of layers, or its decoder's."""
    for child in (*base.children(), *cast(Any, base).get_decoder().children()):
        if isinstance(child, nn.ModuleList) and len(child) == num_layers:
            return child
    raise UnsupportedModel(type(base).__name__, f"has no list of {num_layers} decoder layers")


@dataclass
class Given(BaseModelOutputWithPast):
    """A body's output of hidden states alone: whatever else a head looks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Passthrough(nn.Module):
    """Stands where the base model was, or the decoder in it, and hands on the hidden states it is given."""

    @property
    def decoder(self) -> _Passthrough:
        return self

    def forward(self, *_args: Any, inputs_embeds: torch.Tensor, **_options: Any) -> Given:
        return Given(last_hidden_state=inputs_embeds)


def headless(causal_lm: PreTrainedModel) -> PreTrainedModel:
    """The model without its body, sharing all else: its forward turns hidden states into logits as the model does."""
    head = copy.copy(causal_lm)
    head._modules = {**causal_lm._modules, causal_lm.base_model_prefix: _Passthrough()}
    return head


def resolve_device(device: str) -> torch.device:
    """auto: CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    """auto: on CUDA the checkpoint's; on the CPU bfloat16 only where the CPU multiplies it natively, for elsewhere it
    is several times slower than float32.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type != "cpu":
        own = getattr(config, "dtype", None)
        return own if isinstance(own, torch.dtype) else torch.bfloat16
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """AVX512_BF16 or AMX."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def _silent(_phase: str, _fraction: float) -> None:
    return None


def load(
    path: str,
    *,
    device: str,
    dtype: str,
    quantize: Quantize = "none",
    progress: Progress = _silent,
    attention: AttentionMaker | None = None,
    is_batch_invariant: bool = False,
) -> Model:
    """Load a local Hugging Face directory (safetensors only, no remote code, no network)."""
    progress("reading configuration", 0.0)
    config = read_config(path)
    check_config(config)
    place = resolve_device(device)
    check_machine(quantize, place, dtype, is_batch_invariant=is_batch_invariant)
    numbers = resolve_dtype(dtype if quantize == "none" else COMPUTES_IN[place.type], place, config)
    causal_lm: Any = load_weights(AutoModelForCausalLM, path, config, numbers, progress).to(place)
    progress("loading weights", 1.0)
    make = attention or (uniform_attention if is_batch_invariant else default_attention)
    return wrap(causal_lm, quantize=quantize, progress=progress, attention=make, is_batch_invariant=is_batch_invariant)


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


@torch.inference_mode()
def wrap(
    causal_lm: Any,
    *,
    quantize: Quantize = "none",
    progress: Progress = _silent,
    attention: AttentionMaker = default_attention,
    capture: Capture | None = None,
    is_batch_invariant: bool = False,
) -> Model:
    """Turn a loaded PreTrainedModel into ours. Its modules are replaced: it has no other use after.

    capture: how decode steps are recorded; None: by CUDA graphs where the backend can be, elsewhere not at all.
    is_batch_invariant: a row's bits must not depend on the batch, which costs nothing on the CPU and much on a GPU; the
    attention must be made for it too. Raises UnsupportedModel where that cannot be had.
    """
    check_config(causal_lm.config)
    check_class(causal_lm)
    causal_lm.eval()
    with trials(type(causal_lm).__name__):
        return _wrap(causal_lm, quantize, progress, attention, capture, is_batch_invariant=is_batch_invariant)


def _wrap(
    causal_lm: Any,
    quantize: Quantize,
    progress: Progress,
    attention: AttentionMaker,
    capture: Capture | None,
    *,
    is_batch_invariant: bool,
) -> Model:
    device, dtype = causal_lm.device, causal_lm.dtype
    is_rounded = quantize in ROUNDED and device.type == "cpu"
    if is_rounded:
        round_linears(causal_lm, quantize)
    elif quantize != "none":
        quantise_linears(causal_lm, quantize)
    agreement = Agreement(causal_lm, rounds_inputs=is_rounded)
    register(causal_lm)
    plugged, shapes = trace(causal_lm)
    backend = attention(shapes, device, dtype)
    is_compiled = False
    if quantize != "none" and not is_rounded:
        pass  # made fast already
    elif device.type == "cpu":
        if dtype == torch.float32 and kernels.available():
            is_compiled = fuse(causal_lm, plugged, backend, progress, quantize)
        make_row_exact(causal_lm, progress, quantize)
        if quantize != "none":
            check_model(quantize, type(causal_lm).__name__, list(bare_products(causal_lm)))
    elif is_batch_invariant:
        invariant(causal_lm)
    else:
        make_fast(causal_lm)
    if capture is None and device.type == "cuda" and hasattr(backend, "decode_plan"):
        capture = CudaCapture()
    info = _describe(causal_lm, len(shapes), agreement)
    model = Model(causal_lm, info, backend, plugged, is_compiled=is_compiled, capture=capture)
    agreement.check(model)
    return model


def invariant(causal_lm: Any) -> None:
    try:
        make_batch_invariant(causal_lm)
    except NotRowExact as error:
        raise UnsupportedModel(type(causal_lm).__name__, f"cannot be batch invariant: {error}") from error


def fuse(
    causal_lm: Any, plugged: PluggedAttention, backend: AttentionBackend, progress: Progress, quantize: Quantize
) -> bool:
    """Compile the layers that can be, where the backend can work inside them; returns whether all were."""
    from decoding.attention.kernel import KernelAttention  # noqa: PLC0415 - needs numba
    from decoding.kernels.cpu.tile import Format  # noqa: PLC0415 - needs numba
    from decoding.model.fused import fuse_layers  # noqa: PLC0415 - needs numba

    if not isinstance(backend, KernelAttention):
        return False
    try:
        blocks = decoder_layers(causal_lm.base_model, len(plugged.specs))
    except UnsupportedModel:  # no list of layers: each part is compiled by itself
        return False
    return fuse_layers(blocks, plugged, backend, progress, None if quantize == "none" else Format(quantize))


def _describe(causal_lm: Any, num_layers: int, agreement: Agreement) -> ModelInfo:
    config = causal_lm.config.get_text_config(decoder=True)
    return ModelInfo(
        vocab_size=agreement.vocab_size,
        max_model_len=position_limit(causal_lm),
        eos_token_ids=eos_token_ids(causal_lm),
        hidden_size=agreement.hidden_size,
        num_layers=num_layers,
        ties_embeddings=bool(config.tie_word_embeddings),
        dtype=causal_lm.dtype,
        device=causal_lm.device,
        architecture=type(causal_lm).__name__,
        reads_layers=agreement.hidden_size == config.hidden_size,
        has_head=has_head(causal_lm),
    )


def eos_token_ids(causal_lm: PreTrainedModel) -> tuple[int, ...]:
    """Those of the configuration and of the generation configuration, in that order."""
    found: list[int] = []
    for config in (causal_lm.config, causal_lm.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))

"""Tiny models of every causal-LM architecture that transformers knows, each tried against transformers' own generate.

`python -m tests.decoding.model.architectures [NAME ...]` says of each: exact, refused (by which words), wrong, or that
no tiny one could be built. Any that is wrong or raises something else makes it exit with 1. All take some minutes;
`test_architectures.py` tries those that have been wrong, and one of each other kind.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from decoding.model.compatibility import UnsupportedModel
from decoding.model.loading import wrap
from tests.decoding.model.test_model import generate, greedy, prompts

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_k": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"] * 2
# What an architecture calls otherwise, or wants besides.
OWN: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.5},
    "ministral3": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                            "original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.5},
    },
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 1.0},
        "ffn_config": {"ffn_hidden_size": 96, "hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
    "gemma3n_text": {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0,
                     "laurel_rank": 8, "altup_num_inputs": 2, "layer_types": MIXED, "sliding_window": 16,
                     "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [96] * 4},
    "gemma4_text": {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0,
                    "layer_types": MIXED, "global_head_dim": 16, "sliding_window": 16},
    "lfm2_moe": {"layer_types": ["full_attention"] * 4, "num_dense_layers": 2},
    "lfm2": {"layer_types": ["full_attention"] * 4},
}  # fmt: skip
LARGEST = 50_000_000  # parameters: a larger one was not made tiny by the sizes above


class NotBuilt(Exception):
    """No tiny model of this architecture; says why."""


def built(name: str, **overrides: Any) -> PreTrainedModel:
    """A fresh float32 model, the same at every call. Raises NotBuilt."""
    options = SIZES | OWN.get(name, {}) | overrides
    try:
        config = _config(name, options)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise NotBuilt(f"{size} parameters")
        torch.manual_seed(0)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    except (UnsupportedModel, NotBuilt):
        raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    _shake(made)
    return made.eval()


def _config(name: str, options: dict[str, Any]) -> Any:
    kind: Any = type(AutoConfig.for_model(name))
    own = OWN.get(name, {})
    given = {key: value for key, value in options.items() if key in own or key in _fields(kind) or "token_id" in key}
    for part, each in kind.sub_configs.items():
        if part in given:
            continue
        inner = options | (OWN.get(f"{name}_text", {}) if part == "text_config" else {})
        given[part] = {key: value for key, value in inner.items() if key in _fields(each)}
    return AutoConfig.for_model(name, **given)


def _fields(kind: Any) -> set[str]:
    return {*kind().to_dict(), *getattr(kind, "attribute_map", {})}


@torch.no_grad()
def _shake(model: PreTrainedModel) -> None:
    """Norms of ones and biases of zeros would hide who leaves them out."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


def compared(name: str, **overrides: Any) -> tuple[list[list[int]], list[list[int]]]:
    """(ours, transformers') greedy tokens behind prompts on both sides of every window and original length."""
    wanted = prompts(5, 150)
    own = built(name, **overrides)
    ours = greedy(wrap(built(name, **overrides)), wanted)
    return ours, [generate(own, prompt) for prompt in wanted]


def verdict(name: str) -> str:
    try:
        ours, theirs = compared(name)
    except NotBuilt as error:
        return f"not built: {error}"
    except UnsupportedModel as error:
        return f"refused: {error}"
    return "exact" if ours == theirs else f"WRONG: {ours} where transformers has {theirs}"


def main(names: list[str]) -> int:
    """Each in a process of its own, so that one that dies is seen."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    failed = []
    for name in names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        print(f"{name:28} ", end="", flush=True)
        child = os.fork()
        if child == 0:
            found = verdict(name)
            print(found, flush=True)
            os._exit(found.startswith("WRONG"))
        if os.waitpid(child, 0)[1]:
            failed.append(name)
    print("failed: " + " ".join(failed) if failed else "none failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

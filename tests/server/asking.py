"""A request for every strategy and every step: what the tests of the table are made from."""

from __future__ import annotations

from typing import Any

from decoding.contract.frames import Beside

Fields = dict[str, Any]

BESIDE = tuple(Beside(name, "TinyForCausalLM", 10, 16) for name in ("draft", "small", "tuned"))
"""Models beside the main one, with which every strategy can run."""

# strategy -> the least a request must say to get it
ASKING: dict[str, Fields] = {
    "greedy": {"temperature": 0},
    "sampling": {},
    "best_of": {"best_of": 3},
    "beam": {"num_beams": 4},
    "beam_sample": {"num_beams": 4, "do_sample": True},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2},
    "best_first": {"num_beams": 4, "beam_mode": "best_first"},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": "low"},
    "guided": {"guidance_scale": 1.5},
    "kl_guided": {"kl_guided": {}},
    "context_aware": {"context_aware": {"prompt": "dog"}},
    "pmi": {"pmi": {}},
    "contrastive_decoding": {"contrastive_decoding": {"amateur": "small"}},
    "dexperts": {"dexperts": {"expert": "tuned", "anti_expert": "small"}},
    "ensemble": {"ensemble": {"models": ["small", "draft"]}},
    "entropix": {"entropix": {}},
    "cot_decoding": {"cot_decoding": {}},
    "sed": {"sed": {}},
    "prompt_lookup": {"prompt_lookup_num_tokens": 10},
    "assisted": {"speculative": True},
}

# key of the table -> a request that bears it
BEARING: dict[str, Fields] = {
    "temperature=0": {"temperature": 0},
    "do_sample=true": {"do_sample": True},
    "do_sample=false": {"do_sample": False},
    "num_beams=1": {"num_beams": 1},
    "penalty_alpha=0": {"penalty_alpha": 0},
    "n": {"n": 2},
    "best_of": {"best_of": 3},
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.1},
    "sampler_order": {"min_p": 0.1, "sampler_order": "vllm"},
    "top_n_sigma": {"top_n_sigma": 1.5},
    "typical_p": {"typical_p": 0.5},
    "epsilon_cutoff": {"epsilon_cutoff": 0.001},
    "eta_cutoff": {"eta_cutoff": 0.002},
    "edt": {"edt": {"theta": 0.1, "base": 0.7}},
    "adapt": {"adapt": {"hot": 0.8, "cold": 0.3, "first_token": True}},
    "repetition_penalty": {
        "repetition_penalty": 1.2, "repetition_penalty_scope": "output", "repetition_penalty_window": 9,
    },
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": -0.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "lz_penalty": {"lz_penalty": 0.15, "lz_scope": "prompt+output", "lz_buffer": 16, "lz_window": 64},
    "eos_penalty": {"eos_penalty": 0.3, "eos_penalty_until": 20},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [5, 1.1]},
    "min_tokens": {"min_tokens": 2},
    "logit_bias": {"logit_bias": {"3": 2.5}},
    "allowed_token_ids": {"allowed_token_ids": [3, 4]},
    "bad_words": {"bad_words": ["dog"]},
    "pause_tokens": {"pause_tokens": {"token_id": 7, "count": 3}},
    "latent_thoughts": {"latent_thoughts": {"count": 3, "start_id": 7, "end_id": 8}},
    "response_format": {"response_format": {"type": "json_object"}},
    "structured": {"structured": {"choice": ["dog", "cat"]}},
    "ignore_eos": {"ignore_eos": True},
    "min_new_tokens": {"min_new_tokens": 2},
}  # fmt: skip

"""Make `seq2seq.json` with transformers 4.55.4: what tiny encoder-decoder models generate from random sources.

    golden/bin/python -m tests.goldens.make_seq2seq

Run from the repository root; the environment is that of `make.py`. Everything runs at batch 1 without padding, in
float32; greedy, beam, group beam, contrastive, assisted, prompt lookup, with processors, forced tokens and decoder
prompts. A run in which some choice between two candidates was ever closer than MIN_GAP is dropped. Tokens end at the
first EOS; group beams leave an ending EOS out, as in `beams.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from transformers.generation import utils as generation

from tests.goldens.make import MIN_GAP, write
from tests.goldens.make_beams import Gaps, cut, watched_beams, watched_groups
from tests.goldens.seq2seq import MODELS, Seq2SeqSpec, build, perturbed_twin
from tests.goldens.tiny import weights_sha256

NEW_TOKENS = 14
SOURCES = (9, 33, 2)
DRAFT_NOISE = 24
GREEDY: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 9},
    {"bad_words_ids": [[5], [40], [11, 12]], "repetition_penalty": 1.2},
    {"forced_bos_token_id": 17},
    {"forced_eos_token_id": True},
    {"decoder_prompt": [21, 8, 30]},
    {"decoder_prompt": [21, 8, 30], "forced_bos_token_id": 17},
)
ASSISTED: tuple[dict[str, Any], ...] = (
    {"num_assistant_tokens": 4},
    {"num_assistant_tokens": 3, "repetition_penalty": 1.2},
)
LOOKED_UP: tuple[dict[str, Any], ...] = ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},)


def beam_options() -> Iterator[dict[str, Any]]:
    for number, alpha in enumerate((0.0, 0.6, 1.0, 2.0, -0.5)):
        num_beams = 2 + number % 4
        more = ({}, {"forced_eos_token_id": True}, {"forced_bos_token_id": 17}, {"decoder_prompt": [4, 9]},
                {"no_repeat_ngram_size": 2})[number]  # fmt: skip
        yield {"num_beams": num_beams, "num_return_sequences": 1 + number % num_beams, "length_penalty": alpha,
               "early_stopping": (False, True, "never")[number % 3], **more}  # fmt: skip
    for number, (num_beams, groups) in enumerate(((4, 2), (3, 3), (2, 2), (4, 4))):
        yield {"num_beams": num_beams, "num_beam_groups": groups, "num_return_sequences": 2, "length_penalty": 1.0,
               "diversity_penalty": (0.7, 2.0, 0.33, 0.27)[number], "early_stopping": number % 2 == 1}  # fmt: skip


def contrastive_options() -> Iterator[dict[str, Any]]:
    yield {"penalty_alpha": 0.6, "top_k": 4}
    yield {"penalty_alpha": 0.3, "top_k": 3, "repetition_penalty": 1.2}


@contextmanager
def watched_argmax(gaps: Gaps) -> Iterator[None]:
    """Report how far ahead each greedily chosen token was."""
    argmax = torch.argmax

    def watch(scores: torch.Tensor, *rest: Any, **given: Any) -> torch.Tensor:
        for row in scores.reshape(-1, scores.shape[-1]) if scores.is_floating_point() else ():
            if len(row) > 1:
                gaps.cut(row.tolist(), 1)
        return argmax(scores, *rest, **given)

    with mock.patch.object(torch, "argmax", watch):
        yield


@contextmanager
def watched_contrast(gaps: Gaps) -> Iterator[None]:
    """Report how far ahead each candidate of contrastive search was."""
    rank = generation._ranking_fast

    def watch(context: Any, following: Any, probs: Any, *rest: Any) -> Any:
        alpha = rest[1]  # behind the mask
        near = torch.nn.functional.normalize(context, dim=2) @ torch.nn.functional.normalize(following, dim=2).mT
        scores = (1 - alpha) * probs.view(-1) - alpha * near.squeeze(-1).max(dim=-1).values
        gaps.cut(scores.tolist(), 1)
        return rank(context, following, probs, *rest)

    with mock.patch.object(generation, "_ranking_fast", watch):
        yield


def generate(model: Any, draft: Any, spec: Seq2SeqSpec, source: list[int], options: dict[str, Any]) -> Any:
    """The sequences and scores of one run, or None where it was too close."""
    gaps, given = Gaps(), dict(options)
    prompt = [spec.start, *given.pop("decoder_prompt", ())]
    if given.get("forced_eos_token_id"):
        given["forced_eos_token_id"] = spec.eos_token_ids[0]
    if "num_assistant_tokens" in given:
        draft.generation_config.num_assistant_tokens = given.pop("num_assistant_tokens")
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        given["assistant_model"] = draft
    input_ids = torch.tensor([source])
    with watched_beams(gaps), watched_groups(gaps), watched_argmax(gaps), watched_contrast(gaps):
        out = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            decoder_input_ids=torch.tensor([prompt]),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(spec.eos_token_ids),
            pad_token_id=spec.eos_token_ids[0],
            return_dict_in_generate=True,
            output_scores=True,
            **given,
        )
    if gaps.smallest < MIN_GAP:
        return None
    is_group = "num_beam_groups" in options
    ids = out.sequences[:, len(prompt) :].tolist()
    run = {
        "options": options,
        "sequences": [cut(one[:NEW_TOKENS], spec.eos_token_ids, with_eos=not is_group) for one in ids],
    }
    if "num_beams" in options:
        run["scores"] = [round(score, 5) for score in out.sequences_scores.tolist()]
    return run


def runs(model: Any, draft: Any, spec: Seq2SeqSpec, source: list[int]) -> list[dict[str, Any]]:
    options = list(GREEDY)
    if spec.is_searched:
        options += [*beam_options(), *contrastive_options(), *ASSISTED]
        # With nothing to look up yet, 4.55.4 takes a first token that is an EOS for the text's end.
        options += LOOKED_UP if spec.start not in spec.eos_token_ids else ()
    found = (generate(model, draft, spec, source, given) for given in options)
    return [run for run in found if run is not None]


def model_entry(spec: Seq2SeqSpec) -> dict[str, Any]:
    model, draft = build(spec), perturbed_twin(spec, DRAFT_NOISE)
    generator = torch.Generator().manual_seed(500 + spec.seed)
    sources = []
    for length in SOURCES:
        source = torch.randint(3, spec.vocab_size - 1, (length,), generator=generator).tolist()
        sources.append({"source_ids": source, "runs": runs(model, draft, spec, source)})
    kept = [run for source in sources for run in source["runs"]]
    ended = sum(len(ids) < NEW_TOKENS for run in kept for ids in run["sequences"])
    kinds = sorted({next(iter(run["options"]), "plain") for run in kept})
    print(f"{spec.name}: {len(kept)} runs kept, {ended} sequences ended by EOS, {kinds}", flush=True)
    return {"name": spec.name, "weights_sha256": weights_sha256(model), "sources": sources}


if __name__ == "__main__":
    torch.set_num_threads(1)
    entries = [model_entry(spec) for spec in MODELS]
    write("seq2seq.json", {"max_new_tokens": NEW_TOKENS, "draft_noise": DRAFT_NOISE}, models=entries)

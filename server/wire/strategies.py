"""The wire fields by which a request picks its strategy, and those strategies' own parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from decoding.contract import params
from decoding.contract.params.beams import EarlyStopping, LengthPenaltyType
from decoding.contract.params.branches import Span
from server.wire.base import Count, Items, Positive, TokenId, Wire, field_of, option

Context = str | Items[TokenId]

SED_QUESTION = "\nIs the answer above right? Answer yes or no:"
JUDGED_TEXT = "{text}"
SED_YES = " Yes"
SED_NO = " No"


class KlGuided(Wire):
    """T = temperature * 0.5 ** (KL(p with the source || p without) / sigma)."""

    sigma: float | None = field_of(params.KlGuided, "sigma")
    prompt: Context | None = option("Text or token ids of the prompt without its source; default: BOS, else EOS.")


class ContextAware(Wire):
    """(1 + alpha) * log p with the source - alpha * log p without."""

    prompt: Context = Field(description="Text or token ids of the prompt without its source.")
    alpha: float | None = field_of(params.ContextAware, "alpha")


class Pmi(Wire):
    """log p with the source - lam * log p without, where the entropy is at least tau."""

    prompt: Context | None = option("Text or token ids of the prompt without its source; default: BOS, else EOS.")
    lam: float | None = field_of(params.Pmi, "lam")
    tau: float | None = field_of(params.Pmi, "tau")


class ContrastiveDecoding(Wire):
    amateur: str = field_of(params.ContrastiveDecoding, "amateur")
    alpha: float | None = field_of(params.ContrastiveDecoding, "alpha")
    beta: float | None = field_of(params.ContrastiveDecoding, "beta")
    tau: float | None = field_of(params.ContrastiveDecoding, "tau")


class Dexperts(Wire):
    expert: str = field_of(params.Dexperts, "expert")
    anti_expert: str = field_of(params.Dexperts, "anti_expert")
    alpha: float | None = field_of(params.Dexperts, "alpha")


class Ensemble(Wire):
    models: Items[str] = field_of(params.Ensemble, "models")
    weights: Items[float] | None = field_of(params.Ensemble, "weights")


class Entropix(Wire):
    """Thresholds of the four quadrants (entropy and varentropy in bits) and the base parameters that they scale."""

    think_token_id: TokenId | None = field_of(params.Entropix, "think_token_id")
    think_text: str | None = option("The same as text; it must be one token.")
    compat: bool | None = field_of(params.Entropix, "compat")
    uses_attention: bool | None = field_of(params.Entropix, "uses_attention")
    temperature: float | None = field_of(params.Entropix, "temperature")
    top_p: float | None = field_of(params.Entropix, "top_p")
    top_k: int | None = field_of(params.Entropix, "top_k")
    min_p: float | None = field_of(params.Entropix, "min_p")
    low_entropy: float | None = field_of(params.Entropix, "low_entropy")
    low_varentropy: float | None = field_of(params.Entropix, "low_varentropy")
    medium_entropy: float | None = field_of(params.Entropix, "medium_entropy")
    high_entropy: float | None = field_of(params.Entropix, "high_entropy")
    high_varentropy: float | None = field_of(params.Entropix, "high_varentropy")
    num_adaptive_samples: int | None = field_of(params.Entropix, "num_adaptive_samples")


class CotDecoding(Wire):
    k: int | None = field_of(params.CotDecoding, "k")
    branch_at: int | None = field_of(params.CotDecoding, "branch_at")
    aggregate: bool | None = field_of(params.CotDecoding, "aggregate")
    answer_regex: str | None = field_of(params.CotDecoding, "answer_regex")
    suffix: str | None = option(
        "Text put behind each finished branch; the answer is looked for in the line that follows, by default its last "
        "number, else all of it. Its confidence is that of the place where the branch says it last."
    )
    span: Span | None = field_of(params.CotDecoding, "span")
    max_answer: int | None = field_of(params.CotDecoding, "max_answer")


class Sed(Wire):
    """The defaults are the authors'. No candidate that is judged right with less than 0.001 is taken, if all are."""

    k: int | None = field_of(params.Sed, "k")
    delta_ratio: float | None = field_of(params.Sed, "delta_ratio")
    min_probability: float | None = field_of(params.Sed, "min_probability")
    delta_entropy: float | None = field_of(params.Sed, "delta_entropy")
    alpha: float | None = field_of(params.Sed, "alpha")
    max_rollout: int | None = field_of(params.Sed, "max_rollout")
    max_points: int | None = field_of(params.Sed, "max_points")
    question: str | None = option(
        "With {text}, which stands for prompt and answer: a prompt of its own; else put behind the answer.",
        SED_QUESTION,
    )
    yes: str | None = option("The answer that says it is right; its probability is the evaluation.", SED_YES)
    no: str | None = option("The answer that says it is wrong: tells which token of yes is looked at.", SED_NO)


class SearchFields(Wire):
    n: int | None = field_of(params.Sampling, "n")
    num_return_sequences: Positive | None = option("Another name of n.", 1)
    do_sample: bool | None = option(
        "false: greedy. With num_beams: true draws the candidates, false ranks by what temperature and filters leave."
    )

    best_of: int | None = field_of(params.BestOf, "best_of", default=None)
    best_of_rank: params.RankBy | None = field_of(params.BestOf, "rank_by")

    num_beams: int | None = field_of(params.Beam, "num_beams", default=None)
    use_beam_search: bool | None = option("vLLM's way: best_of, else n, is num_beams.", False)
    beam_mode: Literal["standard", "best_first"] | None = option("In which order hypotheses are expanded.", "standard")
    length_penalty: float | None = field_of(params.Beam, "length_penalty")
    length_penalty_type: LengthPenaltyType | None = field_of(params.Beam, "length_penalty_type")
    coverage_penalty: float | None = field_of(params.Beam, "coverage_penalty")
    early_stopping: EarlyStopping | None = field_of(params.Beam, "early_stopping")
    beam_prune: float | None = field_of(params.Beam, "prune")
    num_beam_groups: int | None = field_of(params.GroupBeam, "num_beam_groups", default=1)
    diversity_penalty: float | None = field_of(params.GroupBeam, "diversity_penalty")

    penalty_alpha: float | None = field_of(params.Contrastive, "penalty_alpha", default=None)
    dola_layers: Literal["low", "high"] | Items[Count] | None = option("Layers to contrast the last one with.")
    dola_relative_top: float | None = field_of(params.Dola, "relative_top")
    guidance_scale: float | None = field_of(params.Guided, "scale", default=1.0)
    negative_prompt: Context | None = option(
        "Text (as it stands, without chat template) or token ids to steer away from; default: the last prompt token."
    )
    kl_guided: KlGuided | None = option("Temperature by the divergence from the prompt without its source.")
    context_aware: ContextAware | None = option("What the source in the prompt says outweighs what the model knows.")
    pmi: Pmi | None = option("Tokens that the source in the prompt makes likelier.")
    contrastive_decoding: ContrastiveDecoding | None = option("Contrast with a weaker model.")
    dexperts: Dexperts | None = option("Logits moved by the difference of two other models.")
    ensemble: Ensemble | None = option("Several models decide together.")
    entropix: Entropix | None = option("The sampler picks its parameters by entropy and varentropy.")
    cot_decoding: CotDecoding | None = option("Branches over the first token, ranked by confidence in the answer.")
    sed: Sed | None = option("Self-evaluation where the next token is unclear.")

    prompt_lookup_num_tokens: int | None = field_of(params.PromptLookup, "num_tokens", default=None)
    max_matching_ngram_size: int | None = field_of(params.PromptLookup, "max_ngram")
    speculative: bool | None = option("Draft with the server's draft model.", False)
    num_assistant_tokens: int | None = field_of(params.Assisted, "num_tokens")
    num_assistant_tokens_schedule: params.Schedule | None = field_of(params.Assisted, "schedule")
    assistant_confidence_threshold: float | None = field_of(params.Assisted, "confidence_threshold")

    @property
    def num_choices(self) -> int:
        return self.n or self.num_return_sequences or 1

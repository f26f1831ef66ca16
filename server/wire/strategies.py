"""The wire fields by which a request picks its strategy, and those strategies' own parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from server.wire.base import Count, Items, Positive, Probability, TokenId, Wire, option

Threshold = Annotated[float, Field(ge=0, le=1000)]
Drafts = Annotated[int, Field(ge=0, le=128)]
Context = str | Items[TokenId]

KL_SIGMA = 1.0
SED_QUESTION = "\nIs the answer above right? Answer yes or no:"
JUDGED_TEXT = "{text}"
SED_YES = " Yes"
SED_NO = " No"


class KlGuided(Wire):
    """T = temperature * 0.5 ** (KL(p with the source || p without) / sigma)."""

    sigma: Annotated[float, Field(ge=1e-6, le=1e6)] | None = option(
        "The divergence that halves the temperature.", KL_SIGMA
    )
    prompt: Context | None = option("Text or token ids of the prompt without its source; default: BOS, else EOS.")


class Entropix(Wire):
    """Thresholds of the four quadrants (entropy and varentropy in bits) and the base parameters that they scale."""

    think_token_id: TokenId | None = option("Injected where the model is uncertain; default: sampled there instead.")
    think_text: str | None = option("The same as text; it must be one token.")
    compat: bool | None = option("Reproduce the reference's two defects.", False)
    uses_attention: bool | None = option("Whether attention entropy and agreement count.", True)
    temperature: Threshold | None = option("Base temperature.", 0.666)
    top_p: Probability | None = option("Base top-p.", 0.9)
    top_k: Annotated[int, Field(ge=1, le=100)] | None = option("Base top-k.", 27)
    min_p: Probability | None = option("Base min-p.", 0.03)
    low_entropy: Threshold | None = option("Below: entropy is low.", 0.1)
    low_varentropy: Threshold | None = option("Below: varentropy is low.", 0.1)
    medium_entropy: Threshold | None = option("Above: entropy is not low.", 3.0)
    high_entropy: Threshold | None = option("Above: entropy is high.", 5.0)
    high_varentropy: Threshold | None = option("Above: varentropy is high.", 5.0)
    num_adaptive_samples: Annotated[int, Field(ge=1, le=32)] | None = option("Draws of the adaptive branch.", 5)


class CotDecoding(Wire):
    k: Positive | None = option("Branches: the k likeliest tokens.", 10)
    branch_at: Count | None = option("Output position of the branching.", 0)
    aggregate: bool | None = option("Sum the confidence of branches with the same answer, else the surest wins.", True)
    answer_regex: str | None = option("RE2 pattern of the answer, its last match counts; default: the last number.")
    suffix: str | None = option(
        "Text put behind each finished branch; the answer is looked for in the line that follows, by default its last "
        "number, else all of it. Its confidence is that of the place where the branch says it last."
    )
    span: Literal["answer", "all"] | None = option("The tokens whose confidence counts.", "answer")
    max_answer: Annotated[int, Field(ge=1, le=1024)] | None = option("Most tokens of the answer behind a suffix.", 16)


class Sed(Wire):
    """The defaults are the authors'. No candidate that is judged right with less than 0.001 is taken, if all are."""

    k: Annotated[int, Field(ge=2, le=2**31 - 1)] | None = option("Candidates at a chaotic point.", 2)
    delta_ratio: Probability | None = option("Chaotic where p2 / p1 lies above.", 0.5)
    min_probability: Probability | None = option("Chaotic where p1 lies below, too.", 0.2)
    delta_entropy: Threshold | None = option(
        "Chaotic where the entropy (bits) lies above, instead of by the two above; default: not looked at."
    )
    alpha: Probability | None = option("Weight of the evaluation against the token's own probability.", 0.8)
    max_rollout: Annotated[int, Field(ge=1, le=4096)] | None = option("Most tokens of a trial continuation.", 512)
    max_points: Annotated[int, Field(ge=0, le=1024)] | None = option("Most chaotic points of a request.", 5)
    question: str | None = option(
        "With {text}, which stands for prompt and answer: a prompt of its own; else put behind the answer.",
        SED_QUESTION,
    )
    yes: str | None = option("The answer that says it is right; its probability is the evaluation.", SED_YES)
    no: str | None = option("The answer that says it is wrong: tells which token of yes is looked at.", SED_NO)


class SearchFields(Wire):
    n: Positive | None = option("Choices returned.", 1)
    num_return_sequences: Positive | None = option("Another name of n.", 1)
    do_sample: bool | None = option(
        "false: greedy. With num_beams: true draws the candidates, false ranks by what temperature and filters leave."
    )

    best_of: Positive | None = option("Choices sampled, of which the n best are returned. With use_beam_search: beams.")
    best_of_rank: Literal["mean", "sum"] | None = option("Rank by log-prob per token or in all.", "mean")

    num_beams: Positive | None = option("Beams; 1 is greedy decoding, unless do_sample is true.")
    use_beam_search: bool | None = option("vLLM's way: best_of, else n, is num_beams.", False)
    beam_mode: Literal["standard", "best_first"] | None = option("In which order hypotheses are expanded.", "standard")
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = option(
        "Exponent of the length by which a hypothesis' log-prob is divided; GNMT's authors take 0.2.",
        1.0,
    )
    length_penalty_type: Literal["hf", "gnmt"] | None = option("length, or (5 + length) / 6.", "hf")
    coverage_penalty: Annotated[float, Field(ge=0, le=100)] | None = option(
        "GNMT's beta, over the attention to the prompt; 0 is off.", 0.0
    )
    early_stopping: bool | Literal["never"] | None = option(
        "true: at num_beams finished; false: when improvement is unlikely; never: when it is impossible.", False
    )
    beam_prune: Annotated[float, Field(ge=0, le=1e6)] | None = option(
        "Drop beams whose score lies more than this below the best finished one (a difference of scores, which are "
        "logarithms: no factor); default: never."
    )
    num_beam_groups: Positive | None = option("Groups that avoid each other's tokens; 1 is off.", 1)
    diversity_penalty: Annotated[float, Field(ge=0, le=1000)] | None = option(
        "Taken from a token's score for each earlier group that has it in this step.", 0.5
    )

    penalty_alpha: Probability | None = option(
        "Contrastive search's weight of the similarity; 0 is greedy decoding, unless do_sample is true."
    )
    dola_layers: Literal["low", "high"] | Items[Count] | None = option("Layers to contrast the last one with.")
    dola_relative_top: Annotated[float, Field(gt=0, le=1)] | None = option(
        "Tokens less likely than this fraction of the likeliest are left out of the contrast.", 0.1
    )
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = option("Classifier-free guidance; 1 is off.", 1.0)
    negative_prompt: Context | None = option(
        "Text (as it stands, without chat template) or token ids to steer away from; default: the last prompt token."
    )
    kl_guided: KlGuided | None = option("Temperature by the divergence from the prompt without its source.")
    entropix: Entropix | None = option("The sampler picks its parameters by entropy and varentropy.")
    cot_decoding: CotDecoding | None = option("Branches over the first token, ranked by confidence in the answer.")
    sed: Sed | None = option("Self-evaluation where the next token is unclear.")

    prompt_lookup_num_tokens: Drafts | None = option("Most tokens proposed from the text so far; 0 is off.")
    max_matching_ngram_size: Annotated[int, Field(ge=1, le=64)] | None = option("Longest n-gram looked up.", 2)
    speculative: bool | None = option("Draft with the server's draft model.", False)
    num_assistant_tokens: Drafts | None = option("Tokens drafted a round; asks for speculation too. 0 is off.", 5)
    num_assistant_tokens_schedule: Literal["constant", "heuristic"] | None = option(
        "heuristic: two more after a round in which all were accepted, else one fewer.", "constant"
    )
    assistant_confidence_threshold: Probability | None = option(
        "Drafting ends behind a token with a lower draft probability; 0 is off.", 0.4
    )

    @property
    def num_choices(self) -> int:
        return self.n or self.num_return_sequences or 1

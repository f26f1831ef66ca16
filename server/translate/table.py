"""The table of strategies: which there are, what asks for each, what it takes and what it excludes. Data alone.

A key is a wire field that asks for something (its value is not in OFF), or `field=value` for the few fields whose
values mean different things. `asked.py` applies the table, `catalogue.py` shows it at GET /v1/strategies; both get it
from `table_of`, with the rows of plugins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from decoding.contract import params
from decoding.contract.asking import GREEDY_KEYS, Exclusion, Step, Strategy
from decoding.contract.params import LogitsParams
from decoding.contract.params.declared import IsStep, Kind, PartOf, declared
from decoding.contract.params.plugin import WARPING as WARPING_KINDS
from decoding.contract.plugins import Plugins

_LOGITS = declared(LogitsParams)
_PARTS = {name: part for name, each in _LOGITS.items() if (part := each.mark(PartOf))}


def _kind(name: str) -> Kind | None:
    """Of the step that the field asks for or is a part of."""
    step = _LOGITS[_PARTS[name].step if name in _PARTS else name].mark(IsStep)
    return step.kind if step else None


def _neutral() -> dict[str, tuple[Any, ...]]:
    """Fields of steps -> the values that switch them off."""
    return {
        name: (each.default, *each.off)
        for name, each in _LOGITS.items()
        if isinstance(each.default, int | float | str)
        and _kind(name) not in (None, "temperature")
        and (name not in _PARTS or _PARTS[name].has_neutral)
    }


# field -> the values that ask for nothing; null always does
OFF: Mapping[str, tuple[Any, ...]] = {
    **{each.path: each.off for own in params.PARAMS.values() for each in declared(own).values() if each.off},
    **_neutral(),
    # strategies
    "num_return_sequences": (1,),
    "use_beam_search": (False,),
    "beam_mode": ("standard",),
    "speculative": (False,),
    # token-level steps
    "bad_words": ([],),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "min_new_tokens": (0,),
    # answers
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stream": (False,),
}

FILTERS = tuple(name for name in _LOGITS if _kind(name) == "filter")


@dataclass(frozen=True, slots=True)
class Need:
    """`key` has no meaning without `needs`."""

    key: str
    needs: str


_NOTHING_DRAWN = Exclusion(("temperature", *FILTERS), "it draws no token at random")
_NO_SAMPLING = Exclusion(("do_sample=true",), "it draws no token at random")
_NO_TEMPERATURE = Exclusion(("edt", "adapt"), "it has no temperature to set")
_ONE_CHOICE = Exclusion(("n",), "it returns one choice")
_BEAMS_DRAW_NOTHING = Exclusion(
    ("temperature", *FILTERS),
    "beams draw nothing; do_sample false ranks by what these leave, do_sample true draws",
    unless=("do_sample=false",),
)
_OWN_TEMPERATURE = Exclusion(("edt", "adapt"), "it sets the temperature itself")
_ONE_STEERING = Exclusion(("edt", "adapt"), "two ways of steering the same distribution")
_NEVER_GREEDY = Exclusion(GREEDY_KEYS, "it sets the temperature itself")

GREEDY = Strategy(
    "greedy",
    params.Sampling,
    "The likeliest token at each step: reproducible, right for short factual answers.",
    "",
    ("temperature=0",),
    draws=False,
)
SAMPLING = Strategy(
    "sampling",
    params.Sampling,
    "One token drawn at each step; n independent choices share the prompt.",
    "",
)
PLAIN = (GREEDY, SAMPLING)

SEARCHES = (
    Strategy(
        "best_of",
        params.BestOf,
        "Sample many choices, return the best by log-prob: more sensible open-ended answers.",
        "Adiwardana et al. 2020, arXiv 2001.09977",
        ("best_of",),
        rows="best_of",
    ),
    Strategy(
        "beam",
        params.Beam,
        "The likeliest whole sequences: translation, summaries, short answers.",
        "length and coverage penalty: Wu et al. 2016, arXiv 1609.08144",
        ("num_beams",),
        also=("use_beam_search",),
        rows="num_beams",
        draws=False,
        warped_by="do_sample=false",
        excludes=(_BEAMS_DRAW_NOTHING, _NO_TEMPERATURE),
    ),
    Strategy(
        "beam_sample",
        params.BeamSample,
        "Beams over candidates that are drawn: likely sequences with variety.",
        "",
        ("num_beams", "do_sample=true"),
        also=("use_beam_search",),
        fixed={"do_sample": True},
        rows="num_beams",
    ),
    Strategy(
        "group_beam",
        params.GroupBeam,
        "Diverse beams: groups that avoid each other's tokens.",
        "Vijayakumar et al. 2016, arXiv 1610.02424",
        ("num_beams", "num_beam_groups"),
        also=("use_beam_search",),
        rows="num_beams",
        draws=False,
        excludes=(_NOTHING_DRAWN, _NO_TEMPERATURE),
    ),
    Strategy(
        "best_first",
        params.BestFirst,
        "The beams' best result with fewer model calls.",
        "Meister et al. 2020, arXiv 2007.03909",
        ("num_beams", "beam_mode"),
        also=("use_beam_search",),
        fixed={"beam_mode": "best_first"},
        rows="num_beams",
        draws=False,
        excludes=(_NOTHING_DRAWN, _NO_TEMPERATURE),
    ),
    Strategy(
        "contrastive",
        params.Contrastive,
        "Of the likeliest tokens the one that repeats least: long coherent text without sampling.",
        "Su et al. 2022, arXiv 2202.06417",
        ("penalty_alpha",),
        requires=("top_k",),
        rows="top_k",
        draws=False,
        excludes=(
            Exclusion(("temperature", *FILTERS[1:]), "it draws no token at random"),
            _NO_SAMPLING,
            _NO_TEMPERATURE,
            _ONE_CHOICE,
        ),
    ),
    Strategy(
        "dola",
        params.Dola,
        "Contrasts the last layer with an earlier one: fewer made-up facts.",
        "Chuang et al. 2023, arXiv 2309.03883",
        ("dola_layers",),
    ),
    Strategy(
        "guided",
        params.Guided,
        "Classifier-free guidance: towards the prompt, away from a negative one.",
        "Sanchez et al. 2023, arXiv 2306.17806",
        ("guidance_scale",),
        excludes=(_ONE_STEERING,),
    ),
    Strategy(
        "kl_guided",
        params.KlGuided,
        "Cooler where the source in the prompt matters: grounded answers and summaries.",
        "Chang et al. 2023, arXiv 2306.01286",
        ("kl_guided",),
        excludes=(_NEVER_GREEDY, _OWN_TEMPERATURE),
    ),
    Strategy(
        "context_aware",
        params.ContextAware,
        "What the source in the prompt says outweighs what the model remembers: answers that keep to documents.",
        "Shi et al. 2023, arXiv 2305.14739",
        ("context_aware",),
        excludes=(_ONE_STEERING,),
    ),
    Strategy(
        "pmi",
        params.Pmi,
        "Prefers what the source in the prompt makes likelier, where the model is unsure: fewer made-up facts.",
        "van der Poel et al. 2022, arXiv 2210.13210",
        ("pmi",),
        excludes=(_ONE_STEERING,),
    ),
    Strategy(
        "contrastive_decoding",
        params.ContrastiveDecoding,
        "Contrasts the model with a weaker one beside it: less generic text, sounder reasoning.",
        "Li et al. 2022, arXiv 2210.15097; O'Brien & Lewis 2023, arXiv 2309.09117",
        ("contrastive_decoding",),
        excludes=(_ONE_STEERING,),
    ),
    Strategy(
        "dexperts",
        params.Dexperts,
        "Steers the model by two small ones beside it, one tuned and one not: proxy tuning, detoxification.",
        "Liu et al. 2021, arXiv 2105.03023; Liu et al. 2024, arXiv 2401.08565",
        ("dexperts",),
        excludes=(_ONE_STEERING,),
    ),
    Strategy(
        "ensemble",
        params.Ensemble,
        "Several models decide together, each by its weight.",
        "Hinton 2002, products of experts",
        ("ensemble",),
        excludes=(_ONE_STEERING,),
    ),
    Strategy(
        "entropix",
        params.Entropix,
        "Picks greedy, sampling, resampling or a thinking token by the entropy of each step.",
        "xjdr-alt/entropix",
        ("entropix",),
        also=("entropix",),
        excludes=(
            Exclusion(("temperature", *FILTERS), "it has parameters of its own for that"),
            _NEVER_GREEDY,
            _OWN_TEMPERATURE,
            _ONE_CHOICE,
        ),
    ),
    Strategy(
        "cot_decoding",
        params.CotDecoding,
        "Branches over the first token, ranked by confidence in the answer: reasoning without a reasoning prompt.",
        "Wang & Zhou 2024, arXiv 2402.10200",
        ("cot_decoding",),
        rows="cot_decoding.k",
        draws=False,
        excludes=(_NOTHING_DRAWN, _NO_SAMPLING, _NO_TEMPERATURE),
    ),
    Strategy(
        "sed",
        params.Sed,
        "Where the next token is unclear, tries each candidate and asks the model to judge.",
        "Luo et al. 2024, arXiv 2405.16552",
        ("sed",),
        rows="sed.k",
        draws=False,
        excludes=(_NOTHING_DRAWN, _NO_SAMPLING, _NO_TEMPERATURE, _ONE_CHOICE),
    ),
    Strategy(
        "prompt_lookup",
        params.PromptLookup,
        "Proposes what followed the last words before: same distribution, faster where the answer quotes the prompt.",
        "Saxena 2023, prompt lookup decoding",
        ("prompt_lookup_num_tokens",),
    ),
    Strategy(
        "assisted",
        params.Assisted,
        "The server's draft model proposes, the model verifies: same distribution, faster.",
        "Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318",
        ("speculative",),
        also=("speculative",),
        fixed={"speculative": True},
    ),
)

STRATEGIES = PLAIN + SEARCHES


def _steps(*kinds: Kind) -> Iterator[Step]:
    for name, each in _LOGITS.items():
        step = each.mark(IsStep)
        if step is not None and step.kind in kinds:
            parts = (part for part, of in _PARTS.items() if of.step == name)
            yield Step(name, (name, *parts), step.purpose, step.paper)


def _needs() -> Iterator[Need]:
    for name, each in _LOGITS.items():
        step = each.mark(IsStep)
        if step is not None and step.needs:
            yield Need(name, step.needs)
        if name in _PARTS:
            yield Need(name, _PARTS[name].step)


STEPS = (
    *_steps("temperature", "filter", "dynamic temperature", "penalty", "length"),
    Step("min_tokens", ("min_tokens", "min_new_tokens"), "No end before a length.", ""),
    *_steps("mask"),
    Step(
        "response_format",
        ("response_format",),
        "JSON answers: any object, or one that meets a schema.",
        "",
    ),
    Step(
        "structured",
        ("structured",),
        "Answers that match a schema, a regular expression, a choice or a Lark grammar.",
        "",
    ),
    Step(
        "pause_tokens",
        ("pause_tokens",),
        "Filler behind the prompt, time for a model trained with it.",
        "Goyal et al. 2023, arXiv 2310.02226",
    ),
    Step(
        "latent_thoughts",
        ("latent_thoughts",),
        "Hidden states fed back as thoughts before the answer, for a model trained with them.",
        "Hao et al. 2024, arXiv 2412.06769",
    ),
)

NEEDS = (
    *_needs(),
    Need("stream_options", "stream"),
    Need("top_logprobs", "logprobs"),
)

EXCLUSIONS = (
    Exclusion(("do_sample=true",), "nothing is drawn at temperature 0", ("temperature=0",)),
    Exclusion(
        ("temperature",),
        "greedy decoding has none",
        ("do_sample=false", "penalty_alpha=0"),
        unless=("num_beams", "num_beams=1"),
    ),
    Exclusion(
        ("temperature",),
        "a beam of one draws nothing unless do_sample is true",
        ("num_beams=1",),
        unless=("do_sample=false",),
    ),
    Exclusion(("n", "best_of"), "nothing is drawn, so there is one answer", ("num_beams=1", "penalty_alpha=0")),
    Exclusion(("edt",), "two ways of setting the temperature", ("adapt",)),
    Exclusion(("adapt",), "it brings the temperatures itself", ("temperature", *GREEDY_KEYS)),
    Exclusion(("edt",), "it scales the temperature", GREEDY_KEYS),
    Exclusion(("response_format",), "two forms of one answer", ("structured",)),
    Exclusion(
        ("ignore_eos", "min_tokens", "min_new_tokens"),
        "the form says where the answer ends",
        ("response_format", "structured"),
    ),
)

ENCODER_FIELDS = ("decoder_prompt", "forced_bos_token_id")
"""What has a meaning only with a model that has an encoder."""

ENCODER_EXCLUSIONS = (
    Exclusion(("dola_layers",), "DoLa is defined for decoder-only models"),
    Exclusion(("entropix",), "it looks at attention within the text"),
    Exclusion(("sed",), "its question belongs behind a prompt"),
    Exclusion(("pause_tokens", "latent_thoughts"), "the decoder has no prompt to pause behind"),
    Exclusion(("prompt_logprobs",), "an encoder gives its source no log-probs"),
    Exclusion(("echo",), "an encoder gives its source no log-probs", ("logprobs",)),
)
"""What has no meaning with such a model (with `others`: together with one of them)."""


@dataclass(frozen=True)
class Table:
    """The rows above, and behind them those of plugins."""

    plugins: Plugins

    @cached_property
    def searches(self) -> tuple[Strategy, ...]:
        return (*SEARCHES, *map(_with_exclusions, self.plugins.strategies))

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        return (*PLAIN, *self.searches)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        own = self.plugins.steps.values()
        return (*STEPS, *(Step(each.NAME, (each.NAME,), each.PURPOSE, each.PAPER) for each in own))

    @cached_property
    def off(self) -> Mapping[str, tuple[Any, ...]]:
        own = (each for strategy in self.plugins.strategies for each in declared(strategy.params).values())
        return {**OFF, **{each.path: each.off for each in own if each.off}}

    @cached_property
    def owners(self) -> Mapping[str, Strategy]:
        """Top-level wire field -> the strategy it is a parameter of, the first where it is of several."""
        return {name: each for each in reversed(self.searches) for name in each.own_fields}

    @cached_property
    def warping_steps(self) -> frozenset[str]:
        """Of plugins: those that act only where tokens are drawn."""
        return frozenset(name for name, each in self.plugins.steps.items() if each.KIND in WARPING_KINDS)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The fields of plugins that hold texts."""
        owners = (*(each.params for each in self.plugins.strategies), *self.plugins.steps.values())
        return tuple(each.path for owner in owners for each in declared(owner).values())


@cache
def table_of(plugins: Plugins) -> Table:
    return Table(plugins)


def _with_exclusions(strategy: Strategy) -> Strategy:
    """What a plugin need not say: that temperatures act where tokens are drawn, and n where there is such a field."""
    undrawn = () if strategy.draws else (_NOTHING_DRAWN, _NO_SAMPLING, _NO_TEMPERATURE)
    single = () if "n" in strategy.paths else (_ONE_CHOICE,)
    return replace(strategy, excludes=(*strategy.excludes, *undrawn, *single))

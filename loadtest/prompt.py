"""Prompts made from a word list and a seed: the same seed gives the same prompts, two requests never the same one.

Nothing can be answered from a prefix cache by accident; what a shape shares, it shares on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from loadtest.scenario import Shape

Phase = Literal["warmup", "measured"]

_LIST = """
able acid air ant apple arch arm art ash aunt autumn axe baby bag bake ball band bank bark barn base basin bath bean
bear bell belt bench bird blade boat body bone book boot bowl box brain branch bread brick bridge broom brown brush
bucket bulb button cake camera canvas card cart castle cat cave chain chair chalk cheese chest chin circle clay
clock cloth cloud coal coast coat collar comb copper cord corn cotton cough cow crack crane crown cup curtain
curve cushion dance danger daughter day deer desk dinner dog door drain drawer dream dress drop dust ear earth edge
egg engine evening eye face farm feather field finger fire fish flag flame floor flower fly fog food foot forest
fork fox frame friend frog fruit garden gate ghost gift glass glove goat gold grain grass guitar hair hammer hand
harbor harp hat hill hook horn horse hour house ice ink iron island jar jewel key kettle king kitchen knee knife
knot ladder lake lamp leaf leather lemon letter library light lion lip lock map marble market meadow milk mirror
money moon morning moth mountain mouse music nail neck needle nest net night north nose oak ocean office onion
orange oven owl paint paper park path pearl pen pencil pepper piano picture pin pipe plate pocket pond pot powder
prison queen rabbit rail rain ring river road rock roof room root rope rose sail salt sand scale school seed
shadow sheep shelf ship shirt shoe silk silver sister skin sky sleep smoke snail snake snow soap sock song soup
spade spoon spring square stamp star station steam stem step stone storm street summer sun table tail thread
throat thumb ticket tiger tongue tooth tower town train tray tree triangle umbrella valley vessel violin wall watch
water wave wax wheel whistle wind window wing winter wire wolf wood wool yard year
"""
WORDS = tuple(_LIST.split())


def _words(rng: Random, count: int) -> list[str]:
    return rng.choices(WORDS, k=count)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one run. A warm-up shares nothing with what is measured after it."""

    seed: int
    shapes: tuple[Shape, ...]

    def shape(self, phase: Phase, index: int) -> Shape:
        rng = self._rng("shape", phase, index)
        return rng.choices(self.shapes, weights=[shape.weight for shape in self.shapes])[0]

    def text(self, phase: Phase, index: int) -> str:
        shape = self.shape(phase, index)
        shared = _words(self._rng("shared", phase, 0), shape.shared_words)
        own = _words(self._rng("own", phase, index), shape.prompt_words)
        return " ".join(shared + own)

    def _rng(self, purpose: str, phase: Phase, index: int) -> Random:
        return Random(f"{self.seed}/{purpose}/{phase}/{index}")

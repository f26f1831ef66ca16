"""Confident Decoding: tokens from the surest of the last layers.

Zhang et al. 2026, "Deeper is Not Always Better: Mitigating the Alignment Tax via Confident Layer Decoding", arXiv
2606.21906.

    H_l = entropy of softmax(z_l), z_l what the head makes of layer l; L the last layer
    l <- L; while H of the candidate before l is lower than H_l: l <- that candidate
    sample (or take the best) from the request's pipeline on z_l

So the search goes backwards and stops at the first valley of the entropy. Which layers are candidates the request says;
z_l of an earlier layer is made without the model's final norm, as all that polydecode reads of layers. Log-probs that
are raw stay those of the last layer.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from decoding.plugin import Plugin, PluginStrategy, Request, Says, Strategy, Within, check

if TYPE_CHECKING:
    import random

    import torch

    from decoding.plugin.words import Move, Observation, Stopping, Tools


@dataclass(frozen=True, slots=True)
class Confident(PluginStrategy):
    """Tokens from the last layer before the entropy rises again."""

    NAME = WITHIN = "confident"

    layers: Annotated[
        tuple[Annotated[int, Within(0, 1000)], ...],
        Says("Hidden layers before the last one that may be chosen, in ascending order."),
    ]

    def _check(self) -> None:
        ascending = list(self.layers) == sorted(set(self.layers))
        check(0 < len(self.layers) <= 16 and ascending, "confident.layers", "must name 1 to 16 layers, in order")

    @classmethod
    def sample(cls, rng: random.Random) -> Confident:
        return cls(tuple(sorted(rng.sample(range(3), rng.randrange(1, 4)))))

    def decode(self, request: Request, stopping: Stopping, tools: Tools) -> Generator[Move, Observation]:
        from dataclasses import replace

        from decoding.plugin.words import (
            Choice,
            Draw,
            Feed,
            Move,
            NothingToDraw,
            Report,
            TraceEvent,
            is_possible,
            open_prompt,
            prompt_scores,
            row_sum,
            whole_logits,
        )  # fmt: skip

        def entropy(z: torch.Tensor) -> float:  # [vocab]
            return -float(row_sum((z.softmax(-1) * z.log_softmax(-1)).nan_to_num().unsqueeze(0)))

        report = Report(request)
        choice = Choice(report, stopping)
        want = replace(report.want_logits(), layers=self.layers)
        seen, num_steps = (yield Move((open_prompt(request, want),))), 0
        while True:
            row, reading = seen.rows[0].row, seen.rows[0].last
            layer, z = -1, whole_logits(reading)
            h = entropy(z)
            for earlier in reversed(self.layers):
                z_l = reading.layers[earlier]
                if (h_l := entropy(z_l)) >= h:
                    break
                layer, z, h = earlier, z_l, h_l
            scores = tools.process(row, (), z)
            if not is_possible(scores):
                raise NothingToDraw
            x = int(scores.argmax()) if request.logits.is_greedy else tools.draw(scores, Draw(0), reading.position)
            choice.push(report.picked(reading, x, scores))
            event = TraceEvent(num_steps, "layer", {"token": x, "layer": layer, "entropy": h})
            prompt = prompt_scores(request, seen.rows[0].readings) if num_steps == 0 else None
            feeds = () if choice.is_over else (Feed(row, (x,), want=want),)
            seen = yield Move(feeds, emit=(choice.emit(),), prompt=prompt, trace=(event,) if request.trace else ())
            num_steps += 1


PLUGIN = Plugin(
    "confident",
    "1.0",
    strategies=(
        Strategy(
            "confident",
            Confident,
            "Tokens from the surest of the last layers: bypasses what the last one spoils.",
            "Zhang et al. 2026, arXiv 2606.21906",
            when=("confident",),
        ),
    ),
)

"""What the methods of plugins that decode are written with. Import it inside them: it brings torch along."""

from decoding.logits.context import Context
from decoding.logits.history import History
from decoding.logits.step import EXCLUDED, Step, column, exclude, row_exp, row_sum, shift
from decoding.seam import (
    NOTHING,
    Draw,
    Emit,
    Feed,
    Finish,
    FinishReason,
    Move,
    NothingToDraw,
    Observation,
    Open,
    PromptEmit,
    Purpose,
    Reading,
    RowId,
    RowView,
    Scores,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import START, Progress, Stopping
from decoding.strategies.parts.choice import Choice, text_ids
from decoding.strategies.parts.lock_step import LockStep, Verdict
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.report import Report, Token, is_possible, whole_logits
from decoding.strategies.sampling import SamplingStrategy

__all__ = [
    "EXCLUDED", "NOTHING", "START", "Choice", "Context", "Draw", "Emit", "Feed", "Finish", "FinishReason", "History",
    "LockStep", "Move", "NothingToDraw", "Observation", "Open", "Progress", "PromptEmit", "Purpose", "Reading",
    "Report", "RowId", "RowView", "SamplingStrategy", "Scores", "Step", "Stopping", "Token", "Tools", "TraceEvent",
    "Verdict", "Want", "column", "exclude", "is_possible", "open_prompt", "prompt_scores", "row_exp", "row_sum",
    "shift", "text_ids", "whole_logits",
]  # fmt: skip

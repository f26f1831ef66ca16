"""What the strategies asked to see of a forward, computed for all rows at once and copied to the host in one piece.

`enqueue` only launches device work, which a HostCopy brings to the host; `collect` builds the Readings. A row whose
scores are not finite yields an Unreadable and disturbs no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from decoding.device import HostCopy, indices, is_asynchronous, to_device
from decoding.engine.rows import TokenLog
from decoding.logits.context import Context
from decoding.logits.contrast import contrast
from decoding.logits.entropy import entropies
from decoding.logits.history import History
from decoding.logits.pipeline import Pipeline, process, warp
from decoding.sampling import draw, draw_kernels, greedy, uniforms
from decoding.seam import Reading, Scores, Want
from decoding.topk.scores import RowScores, log_softmax_topk, topk

SLICE_ROWS = 128
"""Rows that go through the head at once: bounds the memory of scores to SLICE_ROWS x vocab floats."""
GPU_SLICE_ROWS = 256
"""Each slice reads the whole output matrix, and the host launches its steps one by one."""


class Head(Protocol):
    """The part of the model that reading needs."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor: ...  # [n, hidden] -> [n, vocab] float32

    def project(self, hidden: torch.Tensor) -> torch.Tensor: ...  # [n, hidden] -> [n, vocab] float32


class HiddenStates(Protocol):
    """What a forward leaves behind."""

    @property
    def last(self) -> torch.Tensor: ...  # [T, hidden] after the final norm

    @property
    def layers(self) -> dict[int, torch.Tensor]: ...  # index -> [T, hidden]

    @property
    def probed(self) -> dict[int, torch.Tensor]: ...  # batch row -> [heads, keys]


class Read(NamedTuple):
    """One wanted position: where it is in the batch, and all that its numbers may depend on."""

    token: int  # where in the batch
    batch_row: int
    position: int
    want: Want
    pipeline: Pipeline
    seed: int
    log: TokenLog
    num_prompt: int
    next_id: int | None

    @property
    def history(self) -> History:
        """Ids up to and including the position."""
        return History(self.log.history(self.position + 1), self.num_prompt, self.log.repeats)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The row's scores or hidden state were not finite, or (is_excluded) its own request's masks left none."""

    is_excluded: bool


def enqueue(model: Head, hidden: HiddenStates, reads: Sequence[Read], copy: HostCopy) -> list[ReadSlice]:
    """Launch the work of all reads of one forward."""
    slices = []
    size = GPU_SLICE_ROWS if is_asynchronous(hidden.last.device) else SLICE_ROWS
    for start in range(0, len(reads), size):
        part = ReadSlice(reads[start : start + size], copy)
        part.enqueue(model, hidden)
        slices.append(part)
    return slices


class ReadSlice:
    """Reads that go through the head together."""

    def __init__(self, reads: Sequence[Read], copy: HostCopy) -> None:
        self._reads = reads
        self._copy = copy
        self._fields: list[tuple[str, int, dict[int, int]]] = []  # field, handle, read -> row in it
        self._layer_handles: dict[tuple[int, int], tuple[int, int]] = {}  # (layer, read) -> (handle, row in it)
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}  # read -> scores and raw log-probs
        self._only_draws: tuple[int, int] | None = None  # handles of peaks and tokens, where nothing else is read
        self.drawn: torch.Tensor | None = None  # int64 [reads that draw, most draws], on the device

    def enqueue(self, model: Head, hidden: HiddenStates) -> None:
        if all(read.want.only_draws for read in self._reads):
            self._only_draws = self._enqueue_only_draws(model, hidden)
            return
        self._enqueue_states(model, hidden)
        headed = [i for i, r in enumerate(self._reads) if r.want.reads_head]
        if not headed:
            return
        positions = indices([self._reads[i].token for i in headed], hidden.last.device)
        logits = model.head(hidden.last[positions])  # [n, vocab]
        self._enqueue_entropy(logits, headed)
        self._enqueue_raw_top(logits, headed)
        contrasted = self._contrasted(model, hidden, logits, headed)
        ids = self._enqueue_draws(contrasted, headed)
        for kind in Scores:
            self._enqueue_scores(kind, logits, contrasted, headed, ids)

    @property
    def draws(self) -> list[bool]:
        """Of each read, whether it has a row of `drawn`; those have theirs in the reads' order."""
        return [bool(read.want.draws) for read in self._reads]

    def collect(self) -> list[Reading | Unreadable]:
        """One per read, in order. Call after HostCopy.fetch."""
        if self._only_draws is not None:
            return self._collect_only_draws(*self._only_draws)
        return [self._reading(i) for i in range(len(self._reads))]

    def _enqueue_only_draws(self, model: Head, hidden: HiddenStates) -> tuple[int, int]:
        """For rows that do nothing else, and are most: no field of one read differs in kind from the next one's."""
        positions = indices([read.token for read in self._reads], hidden.last.device)
        scores = self._processed(model.head(hidden.last[positions]), self._reads)
        peaks, self.drawn = _peaks_and_draws(scores, self._reads)
        return self._copy.add(peaks), self._copy.add(self.drawn)

    def _collect_only_draws(self, peak_handle: int, token_handle: int) -> list[Reading | Unreadable]:
        peaks, tokens = self._copy.get(peak_handle), self._copy.get(token_handle)
        readings: list[Reading | Unreadable] = [
            Reading(read.position, (token,))
            for read, token in zip(self._reads, tokens[:, 0].astype(np.int64).tolist(), strict=True)
        ]
        for at in np.flatnonzero(~np.isfinite(peaks)).tolist():
            readings[at] = Unreadable(is_excluded=bool(peaks[at] == -np.inf))
        return readings

    def _add(self, field: str, rows: Sequence[int], tensor: torch.Tensor) -> None:
        """Remember `tensor` [len(rows), ...] as that field of these reads."""
        self._fields.append((field, self._copy.add(tensor), {row: at for at, row in enumerate(rows)}))

    def _read_of(self, i: int) -> dict[str, np.ndarray]:
        """What there is of one read, by field."""
        return {field: self._copy.get(handle)[at[i]] for field, handle, at in self._fields if i in at}

    def _enqueue_states(self, model: Head, hidden: HiddenStates) -> None:
        """Hidden states, logits of early layers, attention scores: whatever does not pass the pipeline."""
        states = [i for i, read in enumerate(self._reads) if read.want.hidden]
        if states:
            # A copy also where it is float32 and whole: the next recorded forward writes to where this one's result is.
            own = _rows(hidden.last, [self._reads[i].token for i in states]).to(torch.float32, copy=True)
            self._add("hidden", states, own)
        for i, read in enumerate(self._reads):
            at = slice(read.token, read.token + 1)
            if read.want.attention:
                self._add("attention", [i], hidden.probed[read.batch_row].float().unsqueeze(0))
            for layer in read.want.layers:
                logits = model.project(hidden.layers[layer][at])
                self._layer_handles[layer, i] = (self._copy.add(logits), 0)

    def _enqueue_entropy(self, logits: torch.Tensor, headed: Sequence[int]) -> None:
        at = [k for k, i in enumerate(headed) if self._reads[i].want.entropy]
        if not at:
            return
        self._add("entropy", [headed[k] for k in at], torch.stack(entropies(_rows(logits, at)), dim=1))

    def _enqueue_raw_top(self, logits: torch.Tensor, headed: Sequence[int]) -> None:
        at = [k for k, i in enumerate(headed) if self._reads[i].want.raw_top]
        if at:
            width = max(self._reads[headed[k]].want.raw_top for k in at)
            best = log_softmax_topk(_rows(logits, at), width)
            self._add("raw_top", [headed[k] for k in at], _stacked(best))

    def _contrasted(
        self, model: Head, hidden: HiddenStates, logits: torch.Tensor, headed: Sequence[int]
    ) -> torch.Tensor:
        """logits [n, vocab], those of reads with a contrast replaced (on a copy)."""
        groups: dict[tuple[tuple[int, ...], float], list[int]] = {}
        for k, i in enumerate(headed):
            want = self._reads[i].want
            if want.contrast:
                groups.setdefault((want.contrast, want.relative_top), []).append(k)
        if not groups:
            return logits
        contrasted = logits.clone()
        for (layers, relative_top), at in groups.items():
            reads = [self._reads[headed[k]] for k in at]
            own = [read.token for read in reads]
            z = _rows(logits, at)
            premature = torch.stack([model.project(_rows(hidden.layers[j], own)) for j in layers], dim=1)
            scores, chosen = contrast(
                z, premature, _excluded(z, reads), relative_top
            )  # premature: [rows, layers, vocab]
            contrasted[indices(at, logits.device)] = scores
            self._add("contrasted", [headed[k] for k in at], chosen)
        return contrasted

    def _processed(self, logits: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor:
        """The whole pipeline of each read, on a copy where there is anything to do."""
        pipelines = [r.pipeline for r in reads]
        if not any(p.processors or p.warpers for p in pipelines):
            return logits
        context = Context([r.history for r in reads], logits)
        return warp(process(logits.clone(), pipelines, context), pipelines, context)

    def _enqueue_draws(self, logits: torch.Tensor, headed: Sequence[int]) -> torch.Tensor | None:
        """Drawn ids [n, most draws of a row], or None when nobody draws. Row order is that of `headed`."""
        at = [k for k, i in enumerate(headed) if self._reads[i].want.draws]
        quiet = [k for k, i in enumerate(headed) if not self._reads[i].want.draws]
        if quiet:
            self._add("peak", [headed[k] for k in quiet], _rows(logits, quiet).amax(dim=-1))
        if not at:
            return None
        reads = [self._reads[headed[k]] for k in at]
        scores = self._processed(_rows(logits, at), reads)
        peak, drawn = _peaks_and_draws(scores, reads)
        self._add("peak", [headed[k] for k in at], peak)
        self.drawn = drawn
        self._add("tokens", [headed[k] for k in at], drawn)
        ids = torch.zeros((len(headed), drawn.shape[1]), dtype=torch.int64, device=logits.device)
        ids[indices(at, logits.device)] = drawn
        return ids

    def _enqueue_scores(
        self,
        kind: Scores,
        logits: torch.Tensor,
        contrasted: torch.Tensor,
        headed: Sequence[int],
        ids: torch.Tensor | None,
    ) -> None:
        """Everything read in one kind of score."""
        wants = [self._reads[i].want for i in headed]
        at = [k for k, want in enumerate(wants) if want.scores is kind and want.reads_scores]
        if not at:
            return
        rows = [headed[k] for k in at]
        reads = [self._reads[i] for i in rows]
        own = _rows(logits, at)
        source = own if kind is Scores.RAW or contrasted is logits else _rows(contrasted, at)
        scores = self._scores(kind, source, reads)
        raw = self._raw(kind, scores, own, reads)
        if ids is not None:
            self._add("drawn", rows, scores.gather(_rows(ids, at)))
            if raw is not None:
                self._add("raw", rows, raw.gather(_rows(ids, at)))
        if scores.ids.shape[1]:
            self._add("top", rows, _stacked(scores))
            if raw is not None:
                self._add("top_raw", rows, raw.gather(scores.ids))
        for k, (row, read) in enumerate(zip(rows, reads, strict=True)):
            own_raw = raw if read.want.logprobs else None
            if read.want.gather:
                gathered = indices(read.want.gather, logits.device)
                self._add("gathered", [row], scores.at(k, gathered).unsqueeze(0))
                if own_raw is not None:
                    self._add("gathered_raw", [row], own_raw.at(k, gathered).unsqueeze(0))
            if read.want.full:
                self._add("full", [row], scores.row(k).unsqueeze(0))
                if own_raw is not None:
                    self._add("full_raw", [row], own_raw.row(k).unsqueeze(0))
            if read.want.keep:
                self._kept[row] = scores.row(k), None if own_raw is None else own_raw.row(k)
        following = [k for k, r in enumerate(reads) if r.want.gather_next and r.next_id is not None]
        if following:
            next_ids = [next_id for k in following if (next_id := reads[k].next_id) is not None]
            found = scores.at(indices(following, logits.device), indices(next_ids, logits.device))
            self._add("next", [rows[k] for k in following], found)

    def _raw(self, kind: Scores, scores: RowScores, logits: torch.Tensor, reads: Sequence[Read]) -> RowScores | None:
        """The raw log-probs of these reads, logits [n, vocab]; None where nobody asks."""
        if not any(r.want.logprobs for r in reads):
            return None
        return scores if scores.z is logits and kind is not Scores.LOGITS else log_softmax_topk(logits)

    def _scores(self, kind: Scores, logits: torch.Tensor, reads: Sequence[Read]) -> RowScores:
        """logits [n, vocab] of these reads -> their scores and the best of them; logits are left alone."""
        width = max(r.want.top_k for r in reads)
        if kind is Scores.LOGITS:
            return topk(logits, width)
        if kind is Scores.PROCESSED:
            return log_softmax_topk(self._processed(logits, reads), width)
        pipelines = [r.pipeline for r in reads]
        has_steps = any(p.processors or (kind is Scores.WARPED and p.warpers) for p in pipelines)
        if kind is Scores.RAW or not has_steps:
            return log_softmax_topk(logits, width)
        context = Context([r.history for r in reads], logits)
        scores = process(log_softmax_topk(logits).whole(), pipelines, context)
        return topk(warp(scores, pipelines, context) if kind is Scores.WARPED else scores, width)

    def _reading(self, i: int) -> Reading | Unreadable:
        read, get = self._reads[i], self._read_of(i).get
        peak = get("peak")
        if peak is not None and not np.isfinite(peak):
            is_excluded = bool(peak == -np.inf)
            return Reading(read.position) if is_excluded and read.want.is_tentative else Unreadable(is_excluded)
        hidden = _tensor(get("hidden"))
        if hidden is not None and not hidden.isfinite().all():
            return Unreadable(is_excluded=False)
        num_draws = len(read.want.draws)
        tokens, drawn, entropy = get("tokens"), get("drawn"), get("entropy")
        following, raw, chosen = get("next"), get("raw"), get("contrasted")
        has_logprobs = read.want.logprobs and drawn is not None
        has_scores = (read.want.logprobs or read.want.keep) and drawn is not None
        kept, kept_raw = self._kept.get(i, (None, None))
        return Reading(
            position=read.position,
            tokens=() if tokens is None else tuple(int(t) for t in tokens[:num_draws]),
            logprobs=tuple(raw[:num_draws].tolist()) if has_logprobs and raw is not None else (),
            drawn_scores=tuple(drawn[:num_draws].tolist()) if has_scores and drawn is not None else (),
            top=_pairs(get("top"), read.want.top_k),
            top_logprobs=_floats(get("top_raw"), read.want.top_k if read.want.logprobs else 0),
            raw_top=_pairs(get("raw_top"), read.want.raw_top),
            gathered=_floats(get("gathered"), len(read.want.gather)),
            gathered_logprobs=_floats(get("gathered_raw"), len(read.want.gather) if read.want.logprobs else 0),
            next_score=None if following is None else float(following),
            full=_tensor(get("full")),
            full_logprobs=_tensor(get("full_raw")),
            entropy=None if entropy is None else float(entropy[0]),
            varentropy=None if entropy is None else float(entropy[1]),
            hidden=hidden,
            layers={layer: self._layer(layer, i) for layer in read.want.layers},
            attention=_tensor(get("attention")),
            contrasted=None if chosen is None else read.want.contrast[int(chosen)],
            kept=kept,
            kept_raw=kept_raw,
        )

    def _layer(self, layer: int, i: int) -> torch.Tensor:
        handle, at = self._layer_handles[layer, i]
        return torch.from_numpy(self._copy.get(handle)[at].astype(np.float32))


def _excluded(logits: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor | None:
    """What the pipelines of these reads rule out, by any of their steps: bool [n, vocab], None where none acts."""
    pipelines = [read.pipeline for read in reads]
    if not any(p.processors for p in pipelines):
        return None
    context = Context([read.history for read in reads], logits)
    return process(logits.clone(), pipelines, context).isneginf()


def _rows(tensor: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of [n, ...]; all of them are the tensor itself."""
    return tensor if list(rows) == list(range(len(tensor))) else tensor[indices(rows, tensor.device)]


def _stacked(scores: RowScores) -> torch.Tensor:
    """The best scores and their ids, as float64 [n, 2, k]."""
    return torch.stack((scores.best.double(), scores.ids.double()), dim=1)


def _peaks_and_draws(scores: torch.Tensor, reads: Sequence[Read]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of each read's processed scores [n, vocab], and its draws as `_draw_all` has them."""
    kernels = draw_kernels(scores.device.type)
    if kernels is None:
        return scores.amax(dim=-1), _draw_all(scores, reads)
    keys = [(k, j) for k, read in enumerate(reads) for j in range(len(read.want.draws))]
    rows, are_greedy = [k for k, _ in keys], [reads[k].pipeline.is_greedy for k, _ in keys]
    numbers = np.zeros(len(keys)) if all(are_greedy) else _numbers(reads, keys)
    peaks, drawn = kernels(scores, rows, numbers, are_greedy)
    if len(keys) == len(reads):
        return peaks, drawn.unsqueeze(1)
    ids = drawn.new_zeros(len(reads), max(len(read.want.draws) for read in reads))
    ids[indices(rows, scores.device), indices([j for _, j in keys], scores.device)] = drawn
    return peaks, ids


def _numbers(reads: Sequence[Read], keys: Sequence[tuple[int, int]]) -> np.ndarray:
    """The uniform number of each (read, draw)."""
    draws = [reads[k].want.draws[j] for k, j in keys]
    return uniforms(
        [reads[k].seed for k, _ in keys],
        [draw.choice for draw in draws],
        [reads[k].position for k, _ in keys],
        [draw.purpose for draw in draws],
    )


def _draw_all(scores: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor:
    """Every draw of every read from its processed scores [n, vocab] -> ids [n, most draws of a read], padded with 0."""
    ids = torch.zeros((len(reads), max(len(r.want.draws) for r in reads)), dtype=torch.int64, device=scores.device)
    fixed = [k for k, r in enumerate(reads) if r.pipeline.is_greedy]
    if fixed:
        ids[indices(fixed, scores.device)] = greedy(_rows(scores, fixed)).unsqueeze(1)
    keys = [(k, j) for k, r in enumerate(reads) if not r.pipeline.is_greedy for j in range(len(r.want.draws))]
    if keys:
        rows, lanes = [k for k, _ in keys], indices([j for _, j in keys], scores.device)
        numbers = to_device(_numbers(reads, keys), scores.device)
        ids[indices(rows, scores.device), lanes] = draw(_rows(scores, rows), numbers)
    return ids


def _floats(array: np.ndarray | None, count: int) -> tuple[float, ...]:
    return () if array is None else tuple(array[:count].tolist())


def _pairs(array: np.ndarray | None, count: int) -> tuple[tuple[int, float], ...]:
    """Scores and ids [2, width] -> the first `count` (id, score)."""
    if array is None or not count:
        return ()
    return tuple((int(token), float(score)) for score, token in zip(array[0, :count], array[1, :count], strict=True))


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))

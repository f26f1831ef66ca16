"""The GPU's kernels against their oracles, on the device: attention, the k best, copies of pages.

On a CPU they run where Triton interprets (TRITON_INTERPRET=1), at sizes that the interpreter can bear.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from decoding.attention.interface import Batch, DecodeInputs, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.device import has_triton
from decoding.topk.plain import plain_topk
from loadtest.gpu_accept.report import Check
from loadtest.gpu_accept.runner import Skip
from loadtest.gpu_accept.session import Session
from tests.decoding.layout import PageBook, Row

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
"""Of the norm of what the oracle gives."""
NUM_PAGES = 1200
SIBLINGS = 6


@dataclass(frozen=True, slots=True)
class Case:
    """tries_uniform: the bits of the kernel that decodes and prefills alike. Each case takes seconds to compile."""

    name: str
    shape: LayerShape
    dtype: torch.dtype = torch.bfloat16
    options: dict[str, Any] = field(default_factory=dict)
    has_sinks: bool = False
    tries_uniform: bool = False

    def spec(self, device: torch.device) -> LayerSpec:
        sinks = torch.linspace(-2, 2, self.shape.heads, device=device) if self.has_sinks else None
        return LayerSpec(0, self.shape.head_dim**-0.5, sinks=sinks, **self.options)


CASES = (
    Case("llama", LayerShape(32, 8, 128, 128), tries_uniform=True),
    Case("smollm2, three query heads a kv head", LayerShape(9, 3, 64, 64)),
    Case("gemma, window and soft cap", LayerShape(8, 4, 256, 256), options={"sliding_window": 100, "softcap": 50.0}),
    Case(
        "gpt-oss, sinks", LayerShape(64, 8, 64, 64), options={"sliding_window": 128}, has_sinks=True, tries_uniform=True
    ),
    Case("phi, a kv head each, 96 wide", LayerShape(32, 32, 96, 96)),
    Case("falcon, 71 query heads", LayerShape(71, 1, 64, 64)),
    Case("keys wider than values", LayerShape(16, 4, 80, 64)),
    Case("llama, float32", LayerShape(32, 8, 128, 128), torch.float32),
)
TINY_CASES = (
    Case("grouped", LayerShape(6, 2, 24, 24), torch.float32),
    Case("window and soft cap", LayerShape(2, 1, 24, 8), torch.float32, {"sliding_window": 17, "softcap": 2.0}),
    Case("sinks", LayerShape(3, 1, 16, 16), torch.float32, {"sliding_window": 20}, has_sinks=True),
)
TICKS = ((900, 300, 30, 0), (1100, 5, 1, 40), (1, 1, 1, 1), (1, 1, 1, 1))
TINY_TICKS = ((37, 11, 0), (7, 5, 4), (1, 1, 1))
"""Tokens of each row: prefill, all kinds mixed, decode (of few rows, so that it is split by keys)."""


@dataclass(frozen=True, slots=True)
class Fed:
    """What a row feeds at every position: [heads, length, dim] each."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def attention(session: Session) -> Iterator[Check]:
    require_triton(session)
    for case in CASES if session.is_gpu else TINY_CASES:
        yield from _check_case(session, case)


def _check_case(session: Session, case: Case) -> Iterator[Check]:
    ticks = TICKS if session.is_gpu else TINY_TICKS
    rows = [_fed(case, sum(tick[row] for tick in ticks), row, session.device) for row in range(len(ticks[0]))]
    expected = _attended(_oracle(session, case), case, rows, ticks, session.device)
    found = _attended(backend(session, case), case, rows, ticks, session.device)
    names = ["prefill", "mixed", *["decode"] * (len(ticks) - 2)]
    errors: dict[str, float] = {}
    for name, mine, other in zip(names, found, expected, strict=True):
        errors[name] = max(errors.get(name, 0.0), relative_error(mine, other))
    is_near = all(error < TOLERANCE[case.dtype] for error in errors.values())  # a NaN is not
    yield Check(f"attention, {case.name}", is_near, ", ".join(f"{k} {error:.1e}" for k, error in errors.items()))
    if (
        session.is_gpu and case.tries_uniform
    ):  # the interpreter multiplies as numpy does, whose order depends on the place
        yield from _check_uniform(session, case, rows[0])
    yield _check_recorded(session, case, rows)
    yield _check_shared(session, case, rows[0])


def _check_uniform(session: Session, case: Case, row: Fed) -> Iterator[Check]:
    length = row.query.shape[1]
    whole = [(length,)]
    parts = [(length - 130,), (127,), (1,), (1,), (1,)]
    outs = [
        torch.cat(_attended(backend(session, case, is_uniform=True), case, [row], ticks, session.device))
        for ticks in (whole, parts)
    ]
    yield Check(f"uniform attention, {case.name}", torch.equal(*outs), "bits of prefill, chunks and decode")


def _check_recorded(session: Session, case: Case, rows: Sequence[Fed]) -> Check:
    """Decode over tensors whose contents are looked at only on the device, beside decode of the same batch."""
    made = backend(session, case)
    made.allocate(NUM_PAGES)
    book, spec = PageBook(NUM_PAGES, made.page_size), case.spec(session.device)
    placed = [Row([0] * row.query.shape[1]) for row in rows]
    first = book.batch([(row, len(row.tokens) - 1) for row in placed])
    made.forward(spec, *_parts(rows, [slice(0, row.query.shape[1] - 1) for row in rows]), made.plan(first))
    batch = book.batch([(row, 1) for row in placed])
    parts = _parts(rows, [slice(row.query.shape[1] - 1, None) for row in rows])
    plain = made.forward(spec, *parts, made.plan(batch))
    recorded = made.forward(spec, *parts, made.decode_plan(_inputs(batch, session.device)))
    error = relative_error(recorded, plain)
    return Check(f"recorded decode, {case.name}", error < TOLERANCE[case.dtype], f"{error:.1e} from plain decode")


def _check_shared(session: Session, case: Case, row: Fed) -> Check:
    """Siblings whose tables begin with the same pages, as beams' and those of n choices do."""
    length = row.query.shape[1]
    outs = []
    for made in (_oracle(session, case), backend(session, case)):
        made.allocate(NUM_PAGES)
        size, spec = made.page_size, case.spec(session.device)
        prompt = Batch.of_one_row(np.zeros(length - 1, dtype=np.int64), size)
        made.forward(spec, *_parts([row], [slice(0, length - 1)]), made.plan(prompt))
        shared, ones = (length - 1) // size, np.ones(SIBLINGS, dtype=np.int64)
        own_pages = shared + 2 + np.arange(SIBLINGS)  # where each writes
        tables = np.concatenate([np.tile(prompt.page_tables[0, :shared], (SIBLINGS, 1)), own_pages[:, None]], 1)
        batch = Batch.of_rows(0 * ones, shared * size * ones, ones, tables, size)
        own = [slice(at, at + 1) for at in range(SIBLINGS)]
        outs.append(made.forward(spec, *_parts([row] * SIBLINGS, own), made.plan(batch)))
    error = relative_error(outs[1], outs[0])
    return Check(f"shared pages, {case.name}", error < TOLERANCE[case.dtype], f"{error:.1e} from the oracle")


def _oracle(session: Session, case: Case) -> PagedAttention:
    return ReferenceAttention([case.shape], device=session.device, dtype=case.dtype)


def _inputs(batch: Batch, device: torch.device) -> DecodeInputs:
    columns = (batch.token_ids, batch.positions, batch.slots, batch.kv_lengths, batch.page_tables)
    return DecodeInputs(*(torch.from_numpy(column).to(device) for column in columns))


def backend(session: Session, case: Case, **options: Any) -> PagedAttention:
    from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - needs triton

    if not session.is_gpu:
        options |= {"block": 16, "span": 32}
    return TritonAttention([case.shape], device=session.device, dtype=case.dtype, **options)


def _fed(case: Case, length: int, seed: int, device: torch.device) -> Fed:
    generator = torch.Generator(device).manual_seed(seed)
    shape = case.shape
    sizes = ((shape.heads, shape.head_dim), (shape.kv_heads, shape.head_dim), (shape.kv_heads, shape.v_head_dim))
    return Fed(
        *(torch.randn(heads, length, dim, device=device, generator=generator).to(case.dtype) for heads, dim in sizes)
    )


def _parts(rows: Sequence[Fed], spans: Sequence[slice]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows' spans laid end to end: [1, heads, T, dim] each."""
    query, key, value = (
        torch.cat([getattr(row, name)[:, span] for row, span in zip(rows, spans, strict=True)], 1)[None]
        for name in ("query", "key", "value")
    )
    return query, key, value


def _attended(
    made: PagedAttention, case: Case, rows: Sequence[Fed], ticks: Sequence[Sequence[int]], device: torch.device
) -> list[torch.Tensor]:
    """What each tick gives, [T, heads, v_head_dim]. Keys that nobody wrote are NaN, and may not be seen."""
    made.allocate(NUM_PAGES)
    for pages in (*made.pages.keys, *made.pages.values):
        pages.fill_(float("nan"))
    book, spec = PageBook(NUM_PAGES, made.page_size), case.spec(device)
    placed = [Row([0] * row.query.shape[1]) for row in rows]
    outs = []
    for counts in ticks:
        live = [at for at, count in enumerate(counts) if count]
        spans = [slice(placed[at].fed, placed[at].fed + counts[at]) for at in live]
        batch = book.batch([(placed[at], counts[at]) for at in live])
        outs.append(made.forward(spec, *_parts([rows[at] for at in live], spans), made.plan(batch))[0])
    return outs


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# the k best


def best(session: Session) -> Iterator[Check]:
    """Scores of few digits, so that many are equal."""
    require_triton(session)
    from decoding.topk.triton import triton_topk  # noqa: PLC0415 - needs triton

    vocabs = (128256, 151936, 50257) if session.is_gpu else (300,)
    for vocab in vocabs:
        for rows, k in ((1, 1), (256, 20), (64, 128)) if session.is_gpu else ((3, 5),):
            generator = torch.Generator(session.device).manual_seed(rows)
            z = torch.randn(rows, vocab, device=session.device, generator=generator).bfloat16().float()
            options: dict[str, Any] = {} if session.is_gpu else {"segment": 128}
            peak, log_total, scores, ids = triton_topk(z, k, True, **options)
            own_peak, own_total, own_scores, own_ids = plain_topk(z, k, True)
            errors = [float((a - b).abs().max()) for a, b in ((log_total, own_total), (scores, own_scores))]
            is_same = torch.equal(ids, own_ids) and torch.equal(peak, own_peak) and max(errors) < 1e-5
            yield Check(f"the {k} best of {rows} x {vocab}", is_same, f"scores differ by {max(errors):.1e}")


# copies of pages


def copies(session: Session) -> Iterator[Check]:
    """Pairs all over; among them some whose pages are both read and written."""
    case = Case("copies", LayerShape(8, 8, 128, 128), session.dtype)
    made = backend(session, case) if can_run_triton(session) else _oracle(session, case)
    made.allocate(200)
    order = torch.randperm(199, generator=torch.Generator().manual_seed(1)).add(1).tolist()
    apart = list(zip(order[:90], order[90:180], strict=True))
    for name, pairs in (("apart", apart), ("in a circle", list(zip(order[:9], [*order[1:9], order[0]], strict=True)))):
        before = []
        for pages in (*made.pages.keys, *made.pages.values):
            pages.normal_()
            before.append(pages.clone())
        made.copy_pages(pairs)
        same = []
        for pages, old in zip((*made.pages.keys, *made.pages.values), before, strict=True):
            expected = old.clone()
            for source, destination in pairs:
                expected[destination] = old[source]
            same.append(torch.equal(pages, expected))
        yield Check(f"copies of pages {name}", all(same), f"{len(pairs)} pages of {len(same)} tensors")


def can_run_triton(session: Session) -> bool:
    return has_triton() and (session.is_gpu or os.environ.get("TRITON_INTERPRET") == "1")


def require_triton(session: Session) -> None:
    if not can_run_triton(session):
        raise Skip("no triton, or no C compiler for it; or no GPU, and TRITON_INTERPRET=1 is not set")

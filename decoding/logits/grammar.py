"""The mask of a grammar: only tokens that an answer matching it may go on with; EOS where it may end.

The mask is a function of the output ids alone. The state after each of the latest histories is kept; a new one is its
parent's, copied and one token on. So rows fork, roll back, run again after a preemption or look ahead without anybody
keeping a state in step, and requests with the same grammar share all of it. What a tick did not ask for is soon
forgotten: a state holds the whole parse, which can be megabytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from decoding.contract.grammars import compile_grammar, read_tokens
from decoding.contract.params import Grammar
from decoding.device import to_device
from decoding.logits.context import Context
from decoding.logits.history import History
from decoding.logits.step import EXCLUDED

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

SPARE_STATES = 64
"""Histories whose state is kept beside twice as many as the last tick asked for: those of rows that waited."""

MAX_GRAMMARS = 32
"""Latest grammars that stay compiled for the next request."""

MIN_PARALLEL = 8
"""Masks from which on waking other cores is worth it; one takes 10 to 500 microseconds."""


@dataclass(slots=True, eq=False)
class State:
    """matcher: None where the history itself breaks the grammar. mask: one bit per token, int32 [words], once known."""

    matcher: LLMatcher | None
    mask: np.ndarray | None = None


class Latest:
    """The states that were asked for last, each with its key. (A grammar's name, the bytes of the output ids.)"""

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[int, bytes], State] = OrderedDict()
        self._asked: set[tuple[int, bytes]] = set()  # since the last tick ended

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: tuple[int, bytes]) -> State | None:
        return self._states.get(key)

    def put(self, key: tuple[int, bytes], state: State) -> None:
        self._states[key] = state

    def ask(self, key: tuple[int, bytes]) -> None:
        """This one is wanted itself, not as the beginning of another: of all it is to go last."""
        self._asked.add(key)
        if key in self._states:
            self._states.move_to_end(key)

    def settle(self) -> None:
        """A tick is over. One that asked for nothing, such as a prefill, forgets nothing."""
        if self._asked:
            most = 2 * len(self._asked) + SPARE_STATES
            while len(self._states) > most:
                self._states.popitem(last=False)
            self._asked.clear()

    def clear(self) -> None:
        self._states.clear()
        self._asked.clear()


class States:
    """One grammar's state at every history. `name` tells it from others in `latest`."""

    def __init__(
        self,
        matcher: LLMatcher,
        num_tokens: int,
        eos_token_ids: Sequence[int],
        *,
        executor: LLExecutor,
        latest: Latest,
        name: int,
    ) -> None:
        self._root = State(matcher)
        self._executor = executor
        self._latest = latest
        self._name = name
        self._num_words = -(-num_tokens // 32)
        self._anything = np.full(self._num_words, -1, dtype=np.int32)
        self._end = _bits(eos_token_ids, self._num_words)

    def masks(self, histories: Sequence[History]) -> np.ndarray:  # int32 [histories, words]
        """What may follow each of them. Before the last token of the prompt that is anything."""
        states = [None if len(h.ids) < h.num_prompt else self._at(h.output_ids) for h in histories]
        self._fill([s for s in dict.fromkeys(states) if s is not None and s.mask is None])
        return np.stack([self._anything if s is None or s.mask is None else s.mask for s in states])

    def _at(self, ids: np.ndarray) -> State:
        """The state after these output ids, from the nearest one before that is kept."""
        start, state = self._nearest(ids)
        for end in range(start + 1, len(ids) + 1):
            state = self._after(state, int(ids[end - 1]))
            self._latest.put((self._name, ids[:end].tobytes()), state)
        self._latest.ask((self._name, ids.tobytes()))
        return state

    def _nearest(self, ids: np.ndarray) -> tuple[int, State]:
        for length in range(len(ids), 0, -1):
            state = self._latest.get((self._name, ids[:length].tobytes()))
            if state is not None:
                return length, state
        return 0, self._root

    def _after(self, state: State, token: int) -> State:
        """A history that the grammar refuses is one that verification rejects; it may end, and nothing else."""
        if state.matcher is None:
            return state
        matcher = state.matcher.deep_copy()
        is_taken = matcher.try_consume_tokens([token]) == 1
        return State(matcher) if is_taken or matcher.is_error() else State(None, self._end)

    def _fill(self, states: Sequence[State]) -> None:
        """Compute their masks, on all cores. A matcher that reached a limit excludes everything: its row fails."""
        if not states:
            return
        masks = np.zeros((len(states), self._num_words), dtype=np.int32)
        pairs = [(s.matcher, i) for i, s in enumerate(states) if s.matcher is not None]
        if len(pairs) < MIN_PARALLEL:
            for matcher, i in pairs:
                matcher.unsafe_compute_mask_ptr(masks[i].ctypes.data, masks[i].nbytes)
        else:
            self._executor.unsafe_compute_mask_ptr(pairs, masks.ctypes.data, masks.strides[0], len(masks))
        for state, mask in zip(states, masks, strict=True):
            is_broken = state.matcher is not None and state.matcher.is_error()
            state.mask = np.zeros_like(mask) if is_broken else mask


class Grammars:
    """The grammars of one model's vocabulary, compiled once each."""

    def __init__(
        self, eos_token_ids: Sequence[int], token_bytes: Sequence[bytes], special_tokens: Sequence[tuple[int, str]] = ()
    ) -> None:
        from llguidance import LLExecutor  # noqa: PLC0415 (optional)

        self._eos_token_ids = tuple(eos_token_ids)
        self._tokens = read_tokens(token_bytes, dict(special_tokens), eos_token_ids)
        self._executor = LLExecutor()
        self._states = Latest()
        self._num_compiled = 0
        self._latest: OrderedDict[Grammar, GrammarMask] = OrderedDict()
        self._compiling = ThreadPoolExecutor(1, "grammar")
        self._begun: dict[Grammar, Future[LLMatcher]] = {}

    def begin(self, grammar: Grammar) -> Future[LLMatcher] | None:
        """Compile it in a thread, which takes milliseconds to seconds; None where `mask` has nothing to wait for."""
        if grammar in self._latest:
            return None
        if grammar not in self._begun or self._begun[grammar].cancelled():
            self._begun[grammar] = self._compiling.submit(compile_grammar, grammar, self._tokens)
        return self._begun[grammar]

    def settle(self) -> None:
        """A tick is over."""
        self._states.settle()

    def rest(self) -> None:
        """Nobody is left: only compiled grammars are kept, for the next request."""
        self._states.clear()
        self._begun = {grammar: begun for grammar, begun in self._begun.items() if not begun.done()}

    def mask(self, grammar: Grammar) -> GrammarMask:
        """Raises InvalidGrammar."""
        found = self._latest.get(grammar)
        if found is None:
            found = self._latest[grammar] = GrammarMask(self._compiled(grammar))
            if len(self._latest) > MAX_GRAMMARS:
                self._latest.popitem(last=False)
        self._latest.move_to_end(grammar)
        return found

    def _compiled(self, grammar: Grammar) -> States:
        self._num_compiled += 1
        begun = self._begun.pop(grammar, None)
        return States(
            compile_grammar(grammar, self._tokens) if begun is None else begun.result(),
            self._tokens.vocab_size,
            self._eos_token_ids,
            executor=self._executor,
            latest=self._states,
            name=self._num_compiled,
        )


@dataclass(frozen=True, slots=True, eq=False)
class GrammarMask:
    """Everything but what its grammar allows is excluded, ids beyond the tokenizer's vocabulary included."""

    states: States

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[GrammarMask], context: Context) -> torch.Tensor:
        return scores.masked_fill_(forbidden(scores, steps, context.histories), EXCLUDED)


def forbidden(scores: torch.Tensor, steps: Sequence[GrammarMask], histories: Sequence[History]) -> torch.Tensor:
    """Which ids the rows' grammars rule out: bool [rows, vocab]."""
    by_states: dict[States, list[int]] = {}
    for row, step in enumerate(steps):
        by_states.setdefault(step.states, []).append(row)
    masks: dict[int, np.ndarray] = {}
    for states, rows in by_states.items():
        masks.update(zip(rows, states.masks([histories[row] for row in rows]), strict=True))
    bits = _unpacked(~np.stack([masks[row] for row in range(len(steps))]), scores.device)
    missing = scores.shape[-1] - bits.shape[-1]
    return torch.nn.functional.pad(bits, (0, missing), value=True) if missing > 0 else bits[:, : scores.shape[-1]]


def _unpacked(words: np.ndarray, device: torch.device) -> torch.Tensor:
    """Bits of words, int32 [rows, words] -> bool [rows, 32 * words]; they travel to a GPU packed."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").view(np.bool_))
    shifts = torch.arange(32, dtype=torch.int32, device=device)
    return (to_device(words, device).unsqueeze(-1).bitwise_right_shift(shifts) & 1).flatten(1).bool()


def _bits(ids: Sequence[int], num_words: int) -> np.ndarray:
    """These bits alone: int32 [num_words]."""
    is_in = np.zeros(num_words * 32, dtype=np.uint8)
    is_in[list(ids)] = 1
    return np.packbits(is_in, bitorder="little").view(np.int32)

"""A tokenizer of two parts, a SentencePiece model and a vocab.json that numbers its pieces, as one tokenizer.json.

Marian's and M2M100's are so, and transformers has no fast form of them. Pieces that vocab.json does not number get ids
behind all others: the server reads those as unknown, as these tokenizers do.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.models import BPE, Unigram
from transformers.convert_slow_tokenizer import SpmConverter
from transformers.tokenization_utils_base import generate_merges

UNIGRAM, BYTE_PAIRS = 1, 2  # model_type in a SentencePiece model
_NEVER = -1e6  # the score of what the SentencePiece model does not know: it is never the best way to cut a text
_SENTINEL = -1


class PairedConverter(SpmConverter):
    """Also a MarianTokenizer or an M2M100Tokenizer -> Tokenizer, by `converted()`."""

    def __init__(self, slow: Any) -> None:
        slow.vocab_file = slow.spm_files[0] if hasattr(slow, "spm_files") else slow.spm_file
        super().__init__(slow)  # type: ignore[no-untyped-call]

    def tokenizer(self, proto: Any) -> Tokenizer:
        ids = self._ids([piece.piece for piece in proto.pieces])
        scores = {piece.piece: piece.score for piece in proto.pieces}
        unknown = self.original_tokenizer.unk_token
        if proto.trainer_spec.model_type == UNIGRAM:
            scored = [(token, scores.get(token, _NEVER)) for token in ids]
            made = Tokenizer(Unigram(scored, unk_id=ids[unknown]))
        elif proto.trainer_spec.model_type == BYTE_PAIRS:
            numbered = {piece: number for number, piece in enumerate(scores)}
            made = Tokenizer(BPE(ids, generate_merges(numbered, scores), unk_token=unknown, fuse_unk=True))
        else:
            raise ValueError("the SentencePiece model is neither of unigrams nor of byte pairs")
        made.add_tokens(self._added(ids))
        return made

    def post_processor(self) -> Any:
        slow = self.original_tokenizer
        around = slow.build_inputs_with_special_tokens([_SENTINEL])
        at = around.index(_SENTINEL)
        names = {token_id: slow.convert_ids_to_tokens(token_id) for token_id in around if token_id != _SENTINEL}
        before, after = ([names[i] for i in part] for part in (around[:at], around[at + 1 :]))
        own = [(name, token_id) for token_id, name in names.items()]
        return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=own)

    def _ids(self, pieces: list[str]) -> dict[str, int]:
        """Every id in turn, with its token."""
        slow = self.original_tokenizer
        ids = slow.encoder | slow.get_vocab() | _languages(slow)
        numbered = {token_id: token for token, token_id in ids.items()}
        tokens = [numbered.get(i, f"[EMPTY_{i}]") for i in range(max(numbered) + 1)]
        return {token: i for i, token in enumerate(dict.fromkeys([*tokens, *pieces]))}

    def _added(self, ids: dict[str, int]) -> list[AddedToken]:
        """Tokens that are found in a text as they are: special ones, and Marian's languages."""
        slow = self.original_tokenizer
        special = [token for token in dict.fromkeys((*slow.all_special_tokens, *_languages(slow))) if token in ids]
        languages = [token for token in getattr(slow, "supported_language_codes", ()) if token not in special]
        return [
            *(AddedToken(token, special=True, normalized=False) for token in special),
            *(AddedToken(token, special=False, normalized=False) for token in languages),
        ]


def _languages(slow: Any) -> dict[str, int]:
    """M2M100's, which stand behind the vocabulary."""
    return dict(getattr(slow, "lang_token_to_id", {}))

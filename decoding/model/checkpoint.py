"""The weights of a local directory as a transformers model, all of them: what is missing is refused, never made up.

transformers initialises at random what a checkpoint lacks, and says so in a table on the terminal alone. Here its
report is read: a model whose weights are not whole cannot be served. Owns what a folder must not hold besides
(adapters, quantised weights), the prefixes that training tools leave before names, and the words of each refusal.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging
from transformers.utils.logging import disable_progress_bar

from decoding.model.compatibility import UnsupportedModel, architecture_of
from decoding.model.replace_modules import Progress

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# What wrappers put in front of every name: DataParallel, torch.compile, peft, trainers and vision models around one.
KNOWN_PREFIXES = frozenset({
    "", "model.", "module.", "_orig_mod.", "base_model.", "base_model.model.", "language_model.",
    "model.language_model.", "text_model.", "llm.", "transformer.", "_forward_module.", "_fsdp_wrapped_module.",
})  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
SHOWN = 2  # names of a list
SLACK = 4
"""A model may have this many times the numbers that the files hold before it is taken for absurd without a look."""
FEW = 1000
"""So many layers or experts cost no time worth a check."""
COUNTS = re.compile(r"((num|n|encoder|decoder)_)?((hidden|encoder|decoder|local|routed)_)?(layers?|experts)")

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file, by the file's header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    def read(self, name: str) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as opened:
            found: torch.Tensor = opened.get_tensor(name)
        return found


def load_weights(auto: Any, path: str, config: Any, dtype: torch.dtype, progress: Progress) -> Any:
    """The model of transformers' auto class `auto`, on the CPU. Raises UnsupportedModel where it is not whole."""
    architecture = architecture_of(config)
    _refuse_adapter(Path(path), architecture)
    _refuse_quantised(config, architecture)
    progress("loading weights", 0.0)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # `progress` is told instead
    stored = read_headers(Path(path))
    check_sizes(auto, config, stored, architecture)
    _refuse_packed(stored, architecture)
    with _naming_odd_ones(stored, architecture):
        model, report = _loaded(auto, path, dtype)
        renaming = renaming_of(report["missing_keys"], report["unexpected_keys"])
        if renaming is not None and {*renaming} <= KNOWN_PREFIXES:
            del model
            progress(f"reading the weights' prefix {renaming[0]!r} as {renaming[1]!r}", 1.0)
            model, report = _loaded(auto, path, dtype, {"^" + re.escape(renaming[0]): renaming[1]})
            renaming = None
    if auto is AutoModelForCausalLM and _saved_without_head(model, config, report["missing_keys"]):
        progress("doing without a language head: this model makes embeddings alone", 1.0)
        _tie_head(model)
        report["missing_keys"] = set()
    _check_report(model, report, renaming, stored)
    _tell_leftovers(report["unexpected_keys"], progress)
    return model


def _loaded(auto: Any, path: str, dtype: torch.dtype, mapping: dict[str, str] | None = None) -> tuple[Any, Any]:
    """The model and transformers' report."""
    with _silence():
        return auto.from_pretrained(  # type: ignore[no-any-return]
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # or it would raise without naming them
            key_mapping=mapping,
        )


def has_head(causal_lm: Any) -> bool:
    """Whether its logits mean anything."""
    return not getattr(causal_lm, "is_saved_without_head", False)


def _saved_without_head(model: Any, config: Any, missing: Collection[str]) -> bool:
    """As encoders are, of a class such as MistralModel: the output matrix is all that is missing."""
    named, head = architecture_of(config), model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is head), "")
    is_body = named.endswith("Model") and not named.endswith(("LMHeadModel", "LMModel"))
    return is_body and bool(path and missing) and all(name.startswith(f"{path}.") for name in missing)


def _tie_head(model: Any) -> None:
    """The embedding stands in for it, which costs no memory and makes numbers that nobody is shown."""
    model.config.get_text_config(decoder=True).tie_word_embeddings = True
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.is_saved_without_head = True


@contextmanager
def _naming_odd_ones(stored: Mapping[str, Stored], architecture: str) -> Iterator[None]:
    """transformers puts some weights together of parts, and does not say which of them it cannot."""
    try:
        yield
    except RuntimeError as error:
        odd = odd_ones(stored)
        if "conversion" not in str(error) or not odd:
            raise
        reason = f"holds parts of weights that do not fit together: {_some(odd)}"
        raise UnsupportedModel(architecture, reason) from error


@contextmanager
def _silence() -> Iterator[None]:
    """transformers' tables and advice stay off the terminal: what they say is said here."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def read_headers(directory: Path) -> dict[str, Stored]:
    """Of the files that transformers reads: a whole one before the shards of an index."""
    found: dict[str, Stored] = {}
    for file in _files(directory):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    part = opened.get_slice(name)
                    found[name] = Stored(file, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise ValueError(f"{file.name} is damaged or incomplete") from error
    return found


def _files(directory: Path) -> list[Path]:
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    index = directory / INDEX
    names = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else set()
    return [directory / name for name in sorted(names)]


def _refuse_adapter(directory: Path, architecture: str) -> None:
    if (directory / ADAPTER).is_file():
        advice = "merge it into its model (peft: merge_and_unload) or take it out of the directory"
        raise UnsupportedModel(architecture, f"comes with a LoRA adapter ({ADAPTER}), which would be ignored: {advice}")


def _refuse_quantised(config: Any, architecture: str) -> None:
    """By the configuration's word: no method's weights can be read here, and transformers ignores unknown ones."""
    for part in (config, *_parts(config)):
        found = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if found:
            named = (found if isinstance(found, dict) else vars(found)).get("quant_method")
            method = getattr(named, "value", named) or "an unnamed method"
            advice = "take the checkpoint it was made of, and --quantize int8 or int4"
            raise UnsupportedModel(architecture, f"is quantised by {method}, which cannot be read here: {advice}")


def _refuse_packed(stored: Mapping[str, Stored], architecture: str) -> None:
    """Whole numbers and eight-bit floats mean nothing without their scales, and would be taken for weights."""
    packed = [name for name, each in stored.items() if name.endswith(".weight") and each.dtype not in FLOATS]
    if packed:
        kind = stored[packed[0]].dtype
        reason = f"is quantised in a way that its config.json does not name ({packed[0]} is stored as {kind})"
        raise UnsupportedModel(architecture, reason)


def check_sizes(auto: Any, config: Any, stored: Mapping[str, Stored], architecture: str) -> None:
    """Refuse a configuration that cannot be these files', before room is made for what it describes."""
    longest = max((size for each in stored.values() for size in each.shape), default=0)
    for part in (config, *_parts(config)):
        for name, count in vars(part).items():
            if COUNTS.fullmatch(name) and isinstance(count, int) and count > max(FEW, len(stored), longest):
                raise UnsupportedModel(architecture, f"has {name} = {count}, of which its files hold no trace")
    described = _described(auto, config)
    held = sum(math.prod(each.shape) for each in stored.values())
    if described > SLACK * held:
        reason = f"is described as {described:,} numbers by its config.json, where its files hold {held:,}"
        raise UnsupportedModel(architecture, reason)


def _described(auto: Any, config: Any) -> float:
    """How many numbers the model has, found out without making room for one."""
    try:
        with torch.device("meta"), _silence():
            model: nn.Module = auto.from_config(copy.deepcopy(config))
    except (OverflowError, RuntimeError, TypeError) as error:
        return math.inf if "overflow" in str(error).lower() else 0  # anything else is for the real one to raise
    return sum(weight.numel() for weight in model.parameters())  # shared ones count once


def _parts(config: Any) -> list[Any]:
    found = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [part for part in found if part is not None]


def renaming_of(missing: Iterable[str], unexpected: Iterable[str]) -> tuple[str, str] | None:
    """(old, new): with the prefix `old` replaced by `new`, unexpected names are missing ones. None: no one prefix."""
    by_ending = {name.split(".", cut)[-1]: name for name in unexpected for cut in range(name.count(".") + 1)}
    found: Counter[tuple[str, str]] = Counter()
    for name in missing:
        endings = (name.split(".", cut)[-1] for cut in range(name.count(".") + 1))
        ending = next((each for each in endings if each in by_ending), "")
        if "." in ending:
            found[by_ending[ending].removesuffix(ending), name.removesuffix(ending)] += 1
    return found.most_common(1)[0][0] if found else None


def _check_report(
    model: Any, report: dict[str, Any], renaming: tuple[str, str] | None, stored: Mapping[str, Stored]
) -> None:
    architecture = type(model).__name__
    if report["missing_keys"]:
        raise UnsupportedModel(architecture, _what_lacks(report, renaming))
    if report["mismatched_keys"]:
        name, found, wanted = min(report["mismatched_keys"])
        more = len(report["mismatched_keys"]) - 1
        reason = f"holds {name} in the shape {tuple(found)}, where its config.json makes it {tuple(wanted)}"
        raise UnsupportedModel(architecture, reason + (f" (and {more} more)" if more else ""))
    strays = [name for name in report["unexpected_keys"] if _belongs(model, name) and _says_something(stored, name)]
    if strays:
        reason = f"holds weights of layers that its config.json makes without: {_some(strays)}"
        raise UnsupportedModel(architecture, reason)


def _what_lacks(report: dict[str, Any], renaming: tuple[str, str] | None) -> str:
    missing, others = report["missing_keys"], report["unexpected_keys"]
    words = f"lacks {len(missing)} of its weights: {_some(missing)}"
    if renaming is not None:
        return f"{words}; names seem to begin with {renaming[0]!r} instead of {renaming[1]!r}"
    return words + (f"; {len(others)} others have no place: {_some(others)}" if others else "")


def _belongs(model: Any, name: str) -> bool:
    """Whether a weight without a place lies right in a linear, an embedding or a norm of the model."""
    parent, _, own = name.rpartition(".")
    for path in (parent, f"{model.base_model_prefix}.{parent}"):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        is_leaf = next(module.children(), None) is None and next(module.parameters(), None) is not None
        return is_leaf and own != "_extra_state"
    return False


def _says_something(stored: Mapping[str, Stored], name: str) -> bool:
    """A bias of zeros may be left out."""
    return name not in stored or bool(stored[name].read(name).float().any())


def _tell_leftovers(unexpected: Collection[str], progress: Progress) -> None:
    if unexpected:
        progress(f"leaving out {len(unexpected)} weights that the model has no place for ({_some(unexpected)})", 1.0)


def odd_ones(stored: Mapping[str, Stored]) -> list[str]:
    """Parts, such as an expert's, that are missing beside their like or have another shape than these."""
    shapes: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for name, each in stored.items():
        shapes[_NUMBER.sub("*", name)][each.shape] += 1
    usual = {pattern: counts.most_common(1)[0][0] for pattern, counts in shapes.items()}
    odd = [name for name, each in stored.items() if each.shape != usual[_NUMBER.sub("*", name)]]
    most = max((counts.total() for counts in shapes.values()), default=0)
    lacking = [pattern for pattern, counts in shapes.items() if most > counts.total() > most // 2]
    return odd or lacking


def _some(names: Collection[str]) -> str:
    shown, more = sorted(names)[:SHOWN], len(names) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

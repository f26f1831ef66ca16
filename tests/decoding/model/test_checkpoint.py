"""Checkpoints as people have them: whole ones load, all others are refused by the names of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from decoding.attention.interface import Batch
from decoding.contract.frames import Start
from decoding.contract.params import DRAFT
from decoding.model.checkpoint import odd_ones, read_headers, renaming_of
from decoding.model.compatibility import UnsupportedModel
from decoding.model.loading import load, wrap
from decoding.worker.assembly import build_engine
from decoding.worker.error_report import MAX_CHARS, load_cause
from tests.decoding.model.test_model import generate, greedy, prompts
from tests.decoding.tiny import tiny

Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


def saved(directory: Path, name: str = "llama", change: Change | None = None, **config: Any) -> Path:
    """A tiny model's folder, its weights changed; config: fields that its config.json gets behind that."""
    tiny(name).save_pretrained(directory)
    if change is not None:
        file = directory / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return directory


def start(directory: Path) -> tuple[Any, list[str]]:
    """The model and the steps that the start told of."""
    told: list[str] = []
    loaded = load(str(directory), device="cpu", dtype="float32", progress=lambda phase, _: told.append(phase))
    return loaded, told


def refusal(directory: Path) -> str:
    with pytest.raises(UnsupportedModel) as refused:
        start(directory)
    line = load_cause(refused.value)
    assert len(line) < MAX_CHARS
    return line


def prefixed(prefix: str) -> Change:
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def without(part: str) -> Change:
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def shortened(part: str) -> Change:
    return lambda weights: {name: w[:-1].clone() if part in name else w for name, w in weights.items()}


@pytest.mark.parametrize("prefix", ["language_model.", "base_model.model.", "module.", "_orig_mod."])
def test_a_prefix_of_a_training_tool_is_read_over_and_told(prefix: str, tmp_path: Path) -> None:
    model, told = start(saved(tmp_path, change=prefixed(prefix)))
    assert f"reading the weights' prefix {prefix!r} as ''" in told
    (prompt,) = prompts(9)
    assert greedy(model, [prompt]) == [generate(tiny("llama"), prompt)]


def test_a_prefix_within_the_names_is_read_over(tmp_path: Path) -> None:
    change = lambda weights: {n.replace("model.", "model.language_model."): w for n, w in weights.items()}  # noqa: E731
    model, told = start(saved(tmp_path, change=change))
    assert "reading the weights' prefix 'model.language_model.' as 'model.'" in told
    (prompt,) = prompts(9)
    assert greedy(model, [prompt]) == [generate(tiny("llama"), prompt)]


def test_experts_that_are_put_together_are_found_behind_a_prefix(tmp_path: Path) -> None:
    model, _ = start(saved(tmp_path, "mixtral", prefixed("module.")))
    (prompt,) = prompts(9)
    assert greedy(model, [prompt]) == [generate(tiny("mixtral"), prompt)]


def test_a_prefix_that_nobody_knows_is_named(tmp_path: Path) -> None:
    line = refusal(saved(tmp_path, change=prefixed("foo.")))
    assert "LlamaForCausalLM cannot be served: it lacks 30 of its weights: lm_head.weight" in line
    assert "names seem to begin with 'foo.' instead of ''" in line


def test_a_known_prefix_before_a_part_of_the_weights_alone_is_no_whole_model(tmp_path: Path) -> None:
    line = refusal(saved(tmp_path, change=lambda weights: prefixed("module.")(without("layers.1.mlp")(weights))))
    assert "lacks 3 of its weights: model.layers.1.mlp.down_proj.weight" in line


@pytest.mark.parametrize("part", ["model.layers.1.mlp.", "lm_head", "model.norm.weight", "model.embed_tokens"])
def test_a_missing_weight_is_named(part: str, tmp_path: Path) -> None:
    assert part in refusal(saved(tmp_path, change=without(part)))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_model_that_was_saved_without_its_head_makes_embeddings(prefix: str, tmp_path: Path) -> None:
    body = tiny("mistral").base_model
    body.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + name: weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    model, told = start(tmp_path)
    assert "doing without a language head: this model makes embeddings alone" in told
    _, loaded = build_engine(Start("", kv_memory_bytes=1 << 20), model)
    assert not loaded.has_head
    ids = torch.arange(3, 12)
    batch = Batch.of_one_row(ids.numpy(), model.attention.page_size)
    with torch.no_grad():
        expected = body(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(model.forward(batch).last, expected, rtol=1e-4, atol=1e-4)


def test_such_a_model_drafts_nothing(tmp_path: Path) -> None:
    tiny("llama").base_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="without its language head"):
        build_engine(Start("", kv_memory_bytes=1 << 20), start(tmp_path)[0], {DRAFT: wrap(tiny("llama"))})


def test_a_body_that_lacks_more_than_a_head_is_refused(tmp_path: Path) -> None:
    tiny("mistral").base_model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(without("layers.1.mlp.up_proj")(load_file(file)), file, {"format": "pt"})
    assert "lacks 2 of its weights" in refusal(tmp_path)


def test_a_layer_more_than_the_files_hold_is_named(tmp_path: Path) -> None:
    assert "lacks 9 of its weights: model.layers.3." in refusal(saved(tmp_path, num_hidden_layers=4))


@pytest.mark.parametrize("saved_as", ["model.embed_tokens.weight", "lm_head.weight"])
def test_of_tied_matrices_either_is_enough(saved_as: str, tmp_path: Path) -> None:
    tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    weights[saved_as] = weights.pop("model.embed_tokens.weight")
    save_file(weights, file, {"format": "pt"})
    (prompt,) = prompts(9)
    assert greedy(start(tmp_path)[0], [prompt]) == [generate(tiny("llama", tie_word_embeddings=True), prompt)]


def test_beside_a_whole_file_nothing_else_is_read(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for stray in ("optimizer.safetensors", "pytorch_model.bin", "training_args.bin", "scheduler.pt"):
        (directory / stray).write_bytes(b"no weights")
    (prompt,) = prompts(9)
    assert greedy(start(directory)[0], [prompt]) == [generate(tiny("llama"), prompt)]


def test_a_shape_that_differs_is_told_with_both_shapes(tmp_path: Path) -> None:
    line = refusal(saved(tmp_path, change=lambda w: w | {"model.layers.0.self_attn.q_proj.weight": torch.ones(40, 48)}))
    assert "holds model.layers.0.self_attn.q_proj.weight in the shape (40, 48)" in line
    assert "its config.json makes it (48, 48)" in line


def test_parts_of_an_expert_that_are_missing_or_misshaped_are_named(tmp_path: Path) -> None:
    line = refusal(saved(tmp_path / "lacks", "mixtral", without("layers.1.block_sparse_moe.experts.2.w1")))
    assert "MixtralForCausalLM" in line
    assert "experts.*.w1.weight" in line
    odd = saved(tmp_path / "odd", "mixtral", shortened("0.block_sparse_moe.experts.2.w1"))
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" in refusal(odd)


def test_an_expert_that_is_missing_is_told(tmp_path: Path) -> None:
    line = refusal(saved(tmp_path, "mixtral", without("layers.1.block_sparse_moe.experts.2.")))
    assert "model.layers.1.mlp.experts.down_proj in the shape (3, 48, 80)" in line


def test_a_weight_that_the_model_would_leave_out_of_a_layer_is_named(tmp_path: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}
    assert "q_proj.bias" in refusal(saved(tmp_path, change=lambda weights: weights | bias))


def test_weights_that_change_nothing_are_left_out_and_told(tmp_path: Path) -> None:
    others = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48), "visual.patch.weight": torch.ones(2, 2)}
    _, told = start(saved(tmp_path, change=lambda weights: weights | others))
    assert any("leaving out 2 weights" in step and "visual.patch.weight" in step for step in told)


def test_transformers_own_table_stays_off_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, change=without("lm_head"))
    capfd.readouterr()
    refusal(tmp_path)
    assert "MISSING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4", "zzz"])
def test_quantised_weights_are_refused_by_their_method(method: str, tmp_path: Path) -> None:
    line = refusal(saved(tmp_path, quantization_config={"quant_method": method, "bits": 4}))
    assert f"is quantised by {method}" in line
    assert "--quantize" in line
    assert "install" not in line


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_weights_that_are_packed_without_a_word_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    line = refusal(saved(tmp_path, change=lambda weights: weights | {name: weights[name].to(dtype)}))
    assert "does not name" in line
    assert name in line


def test_an_adapter_beside_the_model_is_refused_by_name(tmp_path: Path) -> None:
    (saved(tmp_path) / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    assert "LoRA adapter (adapter_config.json)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "size"),
    [
        ("llama", "num_hidden_layers", 10**9),
        ("gpt2", "n_layer", 10**9),
        ("mixtral", "num_local_experts", 10**9),
        ("llama", "vocab_size", 10**9),
        ("llama", "vocab_size", 10**18),
        ("llama", "intermediate_size", 10**20),
        ("llama", "hidden_size", 48 * 10**7),
        ("gpt2", "n_positions", 10**12),
    ],
)
def test_sizes_that_the_files_cannot_have_are_refused_before_room_is_made(
    name: str, field: str, size: int, tmp_path: Path
) -> None:
    assert "config.json" in refusal(saved(tmp_path, name, **{field: size})) or field in refusal(tmp_path)


def test_what_a_configuration_contradicts_is_told_in_one_line(tmp_path: Path) -> None:
    saved(tmp_path, num_attention_heads=7)
    with pytest.raises(ValueError, match="hidden size") as refused:
        start(tmp_path)
    assert "attention heads (7)" in load_cause(refused.value)


def test_an_encoder_decoder_model_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("t5", d_model=16, d_ff=16, num_layers=2, num_heads=2, d_kv=8, vocab_size=50,
                                  decoder_start_token_id=0)  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({name: weight for name, weight in whole.items() if "decoder.block.1" not in name}, file, {"format": "pt"})
    assert "decoder.block.1" in refusal(tmp_path)
    save_file(prefixed("module.")(whole), file, {"format": "pt"})
    assert "reading the weights' prefix 'module.' as ''" in start(tmp_path)[1]


def test_a_renaming_is_what_most_names_agree_on() -> None:
    missing = ["model.a.weight", "model.b.weight", "lm_head.weight"]
    assert renaming_of(missing, ["x.model.a.weight", "x.model.b.weight", "y.c.weight"]) == ("x.", "")
    assert renaming_of(missing, ["text.a.weight", "text.b.weight"]) == ("text.", "model.")
    assert renaming_of(missing, ["visual.weight"]) is None


def test_the_odd_ones_among_alike_names_are_found(tmp_path: Path) -> None:
    directory = saved(tmp_path, change=shortened("layers.2.mlp.up_proj"))
    assert odd_ones(read_headers(directory)) == ["model.layers.2.mlp.up_proj.weight"]

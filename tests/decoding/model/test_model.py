"""Models over paged attention: token-exact against transformers' generate, bitwise against themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    GenerationConfig,
    JambaConfig,
    MambaConfig,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
)

from decoding.attention.interface import PagedAttention
from decoding.attention.reference import ReferenceAttention
from decoding.dtype import choose_dtype
from decoding.kernels import cpu as kernels
from decoding.model.compatibility import UnsupportedModel
from decoding.model.loading import load, wrap
from decoding.model.model import Model
from tests.decoding.layout import PageBook, Row
from tests.decoding.rounding_error import of_model, of_product, of_row
from tests.decoding.tiny import CONFIGS, VOCAB, tiny

NEW_TOKENS = 24


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, length).tolist() for length in lengths]


def generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """transformers' own greedy continuation."""
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    model.generation_config = config
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def last_hidden(tokens: list[int]) -> Callable[[Any], torch.Tensor]:
    """Reads all hidden states off transformers' base model."""
    return lambda base: base(input_ids=torch.tensor([tokens])).last_hidden_state[0]  # type: ignore[no-any-return]


def opened(model: Model, seed: int = 0) -> PageBook:
    model.attention.allocate(200)
    return PageBook(200, model.attention.page_size, seed)


def greedy(model: Model, wanted: list[list[int]]) -> list[list[int]]:
    """All prompts in one batch: prefill in two chunks, then decode."""
    book = opened(model)
    rows = [Row(list(prompt)) for prompt in wanted]
    model.forward(book.batch([(row, len(row.tokens) // 2) for row in rows]))
    for _ in range(NEW_TOKENS):
        batch = book.batch([(row, len(row.tokens) - row.fed) for row in rows])
        hidden = model.forward(batch).last[torch.from_numpy(batch.query_starts[1:] - 1)]
        for row, token in zip(rows, model.head(hidden).argmax(-1).tolist(), strict=True):
            row.tokens.append(token)
    return [row.tokens[len(prompt) :] for row, prompt in zip(rows, wanted, strict=True)]


def hidden_states(model: Model, tokens: list[int], chunk: int) -> torch.Tensor:
    """All hidden states of one row fed alone, so many tokens at a time."""
    book, row = opened(model), Row(tokens)
    counts = [min(chunk, len(tokens) - start) for start in range(0, len(tokens), chunk)]
    return torch.cat([model.forward(book.batch([(row, count)])).last for count in counts])


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    wanted = prompts(40, 7, 19)
    expected = [generate(tiny(name), prompt) for prompt in wanted]
    assert len({tuple(tokens) for tokens in expected}) == 3, "the model repeats itself whatever the prompt"
    assert greedy(wrap(tiny(name)), wanted) == expected


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_oss"])
def test_the_reference_backend_gives_the_same_tokens(name: str) -> None:
    def reference(shapes, device, dtype) -> PagedAttention:  # type: ignore[no-untyped-def]
        return ReferenceAttention(shapes, device=device, dtype=dtype)

    wanted = prompts(40, 7)
    assert greedy(wrap(tiny(name), attention=reference), wanted) == greedy(wrap(tiny(name)), wanted)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox", "mixtral", "gpt_oss"])
def test_hidden_states_are_bitwise_the_same_in_any_chunks(name: str) -> None:
    model = wrap(tiny(name))
    (tokens,) = prompts(90)
    whole = hidden_states(model, tokens, 90)
    for chunk in (1, 7, 16):
        assert torch.equal(hidden_states(model, tokens, chunk), whole), chunk


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "mixtral"])
def test_hidden_states_and_logits_are_bitwise_the_same_in_any_company(name: str) -> None:
    model = wrap(tiny(name))
    (tokens,) = prompts(90)
    whole = hidden_states(model, tokens, 90)
    logits = model.head(whole[-1:])
    for company in (2, 5, 17):
        book = opened(model, seed=company)
        others = [Row(each) for each in prompts(*np.random.default_rng(company).integers(2, 100, company - 1).tolist())]
        row = Row(tokens)
        feeds = [(other, len(other.tokens) - 1) for other in others]
        first = model.forward(book.batch([*feeds, (row, 80)])).last[-80:]
        batch = book.batch([(other, 1) for other in others] + [(row, 10)])
        second = model.forward(batch).last
        assert torch.equal(torch.cat([first, second[-10:]]), whole), company
        assert torch.equal(model.head(second)[-1:], logits), company


def test_odd_widths_are_bitwise_the_same_in_any_chunks() -> None:
    model = wrap(tiny("llama", intermediate_size=83, hidden_size=54, num_attention_heads=3, num_key_value_heads=1))
    (tokens,) = prompts(60)
    assert torch.equal(hidden_states(model, tokens, 1), hidden_states(model, tokens, 60))


def test_hidden_layers_are_those_of_transformers() -> None:
    (tokens,) = prompts(20)

    def read(model: Any) -> torch.Tensor:  # [layers + 1, T, hidden]
        return torch.stack(model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states)[:, 0]

    with torch.no_grad():
        expected = read(tiny("llama"))
    error = 2 * of_model(tiny("llama"), read)
    model = wrap(tiny("llama"))
    found = model.forward(opened(model).batch([(Row(tokens), 20)]), layers=(0, 2, 3)).layers
    assert sorted(found) == [0, 2, 3]
    for index, hidden in found.items():
        torch.testing.assert_close(hidden, expected[index], rtol=0, atol=error)


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_project_is_the_output_matrix_without_caps_and_scalings(name: str) -> None:
    original, model = tiny(name), wrap(tiny(name))
    hidden = torch.randn(3, 48) * 3
    error = 2 * of_product(hidden, original.lm_head.weight)
    assert ((model.project(hidden) - original.lm_head(hidden)).abs() <= error).all()
    assert not torch.allclose(model.project(hidden), model.head(hidden))


@pytest.mark.parametrize("name", ["llama", "gemma3", "granite", "gpt2"])
def test_a_fed_vector_is_what_the_model_takes_as_inputs_embeds(name: str) -> None:
    (tokens,) = prompts(12)
    original, model = tiny(name), wrap(tiny(name))
    vector = torch.randn(48)
    embeds = original.get_input_embeddings()(torch.tensor([tokens])).detach().clone()
    embeds[0, 5] = vector

    def read(base: Any) -> torch.Tensor:
        return base(inputs_embeds=embeds.to(next(base.parameters()).dtype)).last_hidden_state[0]  # type: ignore[no-any-return]

    with torch.no_grad():
        expected = read(original.base_model)
    found = model.forward(opened(model).batch([(Row(tokens), 12)], embeds={5: vector})).last
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * of_model(original.base_model, read))


def test_info_tells_what_the_checkpoint_says(tmp_path: Path) -> None:
    made = tiny("llama", eos_token_id=[2, 5])
    made.generation_config = GenerationConfig(eos_token_id=[7, 2])
    made.save_pretrained(tmp_path)
    model = load(str(tmp_path), device="cpu", dtype="float32", progress=lambda *_: None)
    assert model.info.eos_token_ids == (2, 5, 7)
    assert (model.info.vocab_size, model.info.max_model_len) == (VOCAB, 256)
    assert (model.info.hidden_size, model.info.num_layers) == (48, 3)
    assert model.info.architecture == "LlamaForCausalLM"


def test_each_step_of_a_load_is_told_once(tmp_path: Path) -> None:
    """Whoever shows a line for each step's beginning and end would otherwise show the packing of weights twice."""
    tiny("llama").save_pretrained(tmp_path)
    told: list[tuple[str, float]] = []
    load(str(tmp_path), device="cpu", dtype="float32", progress=lambda phase, fraction: told.append((phase, fraction)))
    phases = [phase for phase, _ in itertools.groupby(told, key=lambda each: each[0])]
    compiled = ["packing layers"] if kernels.available() else []
    assert phases == ["reading configuration", "loading weights", *compiled, "packing weights"]
    assert [fraction for _, fraction in told if fraction == 1] == [1] * (len(phases) - 1)


def test_a_loaded_model_gives_the_tokens_of_the_one_saved(tmp_path: Path) -> None:
    tiny("qwen3", tie_word_embeddings=True).save_pretrained(tmp_path)
    wanted = prompts(9, 30)
    expected = [generate(tiny("qwen3", tie_word_embeddings=True), prompt) for prompt in wanted]
    assert greedy(load(str(tmp_path), device="cpu", dtype="float32"), wanted) == expected


def test_bfloat16_runs_and_stays_near_float32() -> None:
    (tokens,) = prompts(30)
    exact = hidden_states(wrap(tiny("llama")), tokens, 30)
    rounded = hidden_states(wrap(tiny("llama").to(torch.bfloat16)), tokens, 30).float()
    eps = torch.finfo(torch.bfloat16).eps  # products add up in float32, and are rounded once
    error = of_model(tiny("llama").base_model, last_hidden(tokens), lambda x: of_row(x) + eps / 2)
    assert (rounded - exact).abs().max() <= error


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_model_in_bfloat16_gives_a_row_bitwise_the_same_in_any_chunks(name: str) -> None:
    (tokens,) = prompts(60)
    model = wrap(tiny(name).to(torch.bfloat16))
    whole = hidden_states(model, tokens, 60)
    for chunk in (1, 7, 16):
        assert torch.equal(hidden_states(model, tokens, chunk), whole), chunk
    assert model.info.dtype == torch.bfloat16


def test_a_model_in_bfloat16_is_compiled_and_keeps_two_bytes_a_weight() -> None:
    causal_lm = tiny("llama", tie_word_embeddings=True).to(torch.bfloat16)
    linears = sum(2 * each.weight.numel() for each in causal_lm.modules() if type(each) is torch.nn.Linear)
    model = wrap(causal_lm)
    assert model.is_compiled
    assert linears <= model.weight_bytes < 1.1 * linears


def test_auto_dtype_on_a_cpu_is_bfloat16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("decoding.dtype.cpu_multiplies_bfloat16", lambda native=native: native)
        chosen = choose_dtype("auto", torch.device("cpu"), None)
        assert chosen.numbers == expected
        assert "this processor" in chosen.reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PegasusConfig(encoder_layers=1, decoder_layers=1, d_model=16, vocab_size=50), "encoder-decoder"),
        (MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50), "linear_attention|recurrent|other"),
        (
            JambaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=50, num_attention_heads=2,
                        num_key_value_heads=1, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1),
            "recurrent state|layers of",
        ),
        (
            DeepseekV3Config(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=50, kv_lora_rank=8,
                             num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, qk_rope_head_dim=8,
                             qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=2, first_k_dense_replace=1),
            "latent",
        ),
        (AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=50), "other attention"),
    ],
    ids=["pegasus", "mamba", "jamba", "deepseek", "bloom"],
)  # fmt: skip
def test_other_architectures_are_refused_by_name(config, reason: str) -> None:  # type: ignore[no-untyped-def]
    kind = PegasusForConditionalGeneration if config.is_encoder_decoder else AutoModelForCausalLM.from_config
    made = kind(config)
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        wrap(made)
    assert type(made).__name__ in str(refusal.value) or config.model_type in str(refusal.value).lower()


def test_chunked_attention_is_refused() -> None:
    config = AutoConfig.for_model("llama", layer_types=["chunked_attention"], num_hidden_layers=1, hidden_size=16,
                                  intermediate_size=16, num_attention_heads=2, vocab_size=50)  # fmt: skip
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        wrap(AutoModelForCausalLM.from_config(config))


def test_a_model_whose_own_result_differs_is_refused() -> None:
    model = tiny("llama")
    inner = model.model.layers[1].self_attn
    own = inner.forward

    def scaled_by_its_own_backend(*args, **kwargs):  # type: ignore[no-untyped-def]
        out, weights = own(*args, **kwargs)
        return (out if "polydecode" in kwargs else out * 1.1), weights

    inner.forward = scaled_by_its_own_backend
    with pytest.raises(UnsupportedModel, match="disagrees"):
        wrap(model)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_longest_row_is_limited_to_where_it_does_not(rope_type: str) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if rope_type == "longrope" else {}
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **factors}
    if rope_type == "longrope":
        rope["original_max_position_embeddings"] = 32
    overrides = {"rope_parameters": rope, "max_position_embeddings": 128 if rope_type == "longrope" else 32}
    network = tiny("llama", **overrides)
    model = wrap(network)
    assert model.info.max_model_len == 32
    rotary = network.model.rotary_emb
    held = rotary.inv_freq.clone()
    rotary(torch.zeros(1), torch.arange(100)[None])
    assert torch.equal(rotary.inv_freq, held), "nobody looks at the positions, for no recording can"
    wanted = prompts(6, 3)
    expected = [generate(tiny("llama", **overrides), prompt) for prompt in wanted]
    assert greedy(model, wanted) == expected

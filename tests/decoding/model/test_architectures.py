"""Architectures beyond the usual ones: served exactly, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decoding.model.compatibility import UnsupportedModel
from decoding.model.loading import wrap
from tests.decoding.layout import PageBook, Row
from tests.decoding.model.architectures import built, compared
from tests.decoding.model.test_model import prompts
from tests.decoding.rounding_error import of_model

# The first four were wrong or crashed once; of the others, each has something that none before it has.
SERVED = ["ministral3", "nemotron", "jetmoe", "hunyuan_v1_moe", "dbrx", "gemma3n_text", "gemma4_text", "phimoe"]
REFUSED = {
    "bloom": "supports no other attention",
    "bert": "without a causal mask",
    "deepseek_v2": "latent attention",
    "diffllama": "does not number",
    "doge": "an attention mask of its own",
    "jamba": "layers of type linear_attention",
    "xmod": "fails over paged attention",
}


@pytest.mark.parametrize("name", SERVED)
def test_tokens_are_those_of_transformers(name: str) -> None:
    ours, theirs = compared(name)
    assert theirs[0] != theirs[1], "the model repeats itself whatever the prompt"
    assert ours == theirs


OPT: dict[str, dict[str, Any]] = {
    "125m": {},
    "350m": {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "galactica": {"enable_bias": False, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("shape", OPT)
def test_opt_of_every_shape_gives_the_tokens_of_transformers(shape: str) -> None:
    ours, theirs = compared("opt", **OPT[shape])
    assert theirs[0] != theirs[1], "the model repeats itself whatever the prompt"
    assert ours == theirs


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_others_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        wrap(built(name))
    assert "cannot be served: it " in str(refused.value)


def test_layers_are_read_and_layers_of_another_width_are_said_to_be() -> None:
    wide = wrap(built("opt", **OPT["350m"]))
    assert (wide.info.hidden_size, wide.info.reads_layers) == (32, False)
    model = wrap(built("opt"))
    assert (model.info.hidden_size, model.info.reads_layers) == (64, True)
    (tokens,) = prompts(20)
    model.attention.allocate(20)
    batch = PageBook(20, model.attention.page_size, 0).batch([(Row(tokens), 20)])

    def read(lm: Any) -> torch.Tensor:  # [layers + 1, T, hidden]
        return torch.stack(lm(torch.tensor([tokens]), output_hidden_states=True).hidden_states)[:, 0]

    with torch.no_grad():
        expected = read(built("opt"))
    error = 2 * of_model(built("opt"), read)
    for index, hidden in model.forward(batch, layers=(0, 2)).layers.items():
        torch.testing.assert_close(hidden, expected[index], rtol=0, atol=error)

"""A scorer says of a sequence what it says of it alone, read at its end, with the head that was saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from posttrain.errors import ModelError
from posttrain.models.scoring import (
    by_length,
    load_language_model,
    load_reward_model,
    newest_checkpoint,
    score_tokens,
    states,
)
from tests.reward_models.scorers import plainly, scorer_folder
from tests.tiny import tiny_folder

PAD = 1
SEQUENCES = [[30, 31, 32], [40] * 20, [30, PAD, PAD, PAD], [PAD], [25, 60, 2, 90, 12], [33]]
"""Of unequal lengths, some with the token that padding is made of, also at their end."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scorer_folder(tmp_path_factory.mktemp("scorer"), outputs=3)


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
def test_a_sequence_scores_alone_what_it_scores_in_any_batch(folder: Path, batch_tokens: int) -> None:
    model = load_reward_model(folder, torch.float32, "cpu")
    got = score_tokens(model, SEQUENCES, batch_tokens)
    assert got.shape == (len(SEQUENCES), 3)
    assert not got.requires_grad
    # fp32, summed in another order.
    expected = torch.tensor([plainly(folder, s) for s in SEQUENCES])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    backwards = score_tokens(model, SEQUENCES[::-1], batch_tokens).flip(0)
    torch.testing.assert_close(got, backwards, atol=1e-5, rtol=0)


def test_in_fp64_padding_and_company_change_nothing(folder: Path) -> None:
    model = load_reward_model(folder, torch.float64, "cpu")
    together = score_tokens(model, SEQUENCES)
    alone = torch.cat([score_tokens(model, [s]) for s in SEQUENCES])
    assert together.dtype == torch.float64
    # The norms and rotary tables of transformers are fp32 whatever the model is.
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_transformers_says_the_same_where_no_padding_can_be_mistaken(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    ids = [30, 31, 32, 60]
    with torch.no_grad():
        own = model(torch.tensor([ids])).logits
    # fp32.
    torch.testing.assert_close(
        score_tokens(load_reward_model(folder, torch.float32, "cpu"), [ids]), own, atol=1e-5, rtol=0
    )


def test_states_are_those_after_the_asked_tokens(folder: Path) -> None:
    model = load_reward_model(folder, torch.float32, "cpu")
    first, second = states(model, [[30, 31, 32, 33], [40, 41]], [[0, 2], []])
    assert (first.shape, second.shape) == ((2, 64), (0, 64))
    # A prefix's last state; fp32.
    torch.testing.assert_close(first[0], states(model, [[30]], [[0]])[0][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(first[1], states(model, [[30, 31, 32]], [[2]])[0][0], atol=1e-5, rtol=0)


def test_no_sequences_have_no_scores(folder: Path) -> None:
    assert score_tokens(load_reward_model(folder, torch.float32, "cpu"), []).shape == (0, 3)


@pytest.mark.parametrize(
    ("sequence", "words"), [([], "without tokens"), ([3] * 257, "257 tokens.*256"), ([3, 96], "token 96 is unknown")]
)
def test_what_a_model_cannot_read_is_named(folder: Path, sequence: list[int], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        score_tokens(load_reward_model(folder, torch.float32, "cpu"), [[30], sequence])


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_the_head_survives_saving_and_loading_to_the_last_digit(folder: Path, tmp_path: Path) -> None:
    saved = load_file(folder / "model.safetensors")["score.weight"]
    assert saved.dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        model = load_reward_model(folder, dtype, "cpu")
        assert torch.equal(model.score.weight, saved)
        assert model.model.layers[0].mlp.up_proj.weight.dtype == dtype
    model.save_pretrained(tmp_path)
    assert torch.equal(load_reward_model(tmp_path, torch.bfloat16, "cpu").score.weight, saved)


def test_a_model_without_its_head_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"rm: .*LlamaForCausalLM without a head"):
        load_reward_model(tiny_folder(tmp_path / "policy"), torch.float32, "cpu", "rm")
    headless = scorer_folder(tmp_path / "headless")
    tensors = load_file(headless / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"rm: .*score\.weight"):
        load_reward_model(headless, torch.float32, "cpu", "rm")


def test_a_language_model_is_read_as_it_was_saved(tmp_path: Path) -> None:
    model = load_language_model(tiny_folder(tmp_path), torch.float32, "cpu")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def checkpoint(run: Path, step: int, complete: bool = True) -> Path:
    model = run / "checkpoints" / f"step-{step:06d}" / "policy"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    if complete:
        (model.parent / "manifest.json").write_text("{}")
    return model


def test_a_run_means_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 900000)
    newest = checkpoint(tmp_path, 1000000)
    checkpoint(tmp_path, 1000001, complete=False)
    (tmp_path / "checkpoints" / ".writing-step-1000002" / "policy").mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == newest
    assert newest_checkpoint(newest.parent) == newest
    assert newest_checkpoint(str(newest)) == newest


def test_a_path_without_a_model_is_named_with_what_is_there(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run", 1, complete=False)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for path, words in (("run", "no complete checkpoint"), ("none", "no folder"), ("m.gguf", "a file")):
        with pytest.raises(ModelError, match=rf"rm: .*{words}"):
            newest_checkpoint(tmp_path / path, "rm")
    with pytest.raises(ModelError, match="no folder"):
        newest_checkpoint("owner/name")


def test_naming_reward_models_imports_no_torch(tmp_path: Path) -> None:
    """`posttrain check` makes them."""
    folder = scorer_folder(tmp_path / "scorer")
    fields = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "golden": []}
    (folder / "card.json").write_text(json.dumps(fields))
    program = (
        "import sys\n"
        "from posttrain_reward_models.classifier import Classifier\n"
        "from posttrain_reward_models.gap import Gap\n"
        "from posttrain_reward_models.implicit import Implicit\n"
        "from posttrain_reward_models.process import Process\n"
        f"path, policy = {str(folder)!r}, {str(tiny_folder(tmp_path / 'policy'))!r}\n"
        "Classifier([path, 'stage:reward']), Gap(path), Process(path), Implicit(policy, 'owner/name')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

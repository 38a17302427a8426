"""Random models small enough for a test, learners over them, and hand-made samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from posttrain.learner.backbone import take_trees
from posttrain.learner.critic import Critic as Value
from posttrain.learner.layout import Layout
from posttrain.learner.policy import Companions, Computation, PolicyLearner
from posttrain.learner.references import References
from posttrain.models.checkpoint import load_policy, load_scorer, load_tokenizer
from posttrain.recipe import Critic, Lora, Model, Optimizer
from posttrain.types import Prompt, Rollout, Sample
from tests.data import tiny_tokenizer

VOCABULARY = 96


def tiny_folder(folder: Path, tied: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A two-layer Llama with random weights, its tokenizer and chat template, as a checkpoint folder."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        # Large enough that logits differ clearly from token to token.
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_learner(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "tree",
    budget: int = 4096,
    temperature: float = 1.0,
    lora: Lora | None = None,
    reference: bool = False,
    critic: Critic | None = None,
    bins: int = 1,
    flat: bool = True,
    **optimizer: Any,
) -> PolicyLearner:
    """The real Learner on a tiny model. `critic` is the recipe's block, `bins` the outputs of its head; `flat` lets
    attention be told what lies in a row, as a run does.
    """
    settings, plain = Model(path=str(folder), lora=lora), Model(path=str(folder))
    asked = Optimizer(**{"learning_rate": 1e-3, **optimizer})
    torch.manual_seed(0)
    policy = load_policy(folder, settings, dtype, "cpu")
    references = None
    if reference:
        references = References([None if lora else load_policy(folder, plain, dtype, "cpu")])
    values = None
    if critic is not None:
        own = critic.backbone == "own"
        model = load_scorer(folder, bins, dtype, "cpu") if own else torch.nn.Linear(64, bins, bias=False)
        # A head of zeros would hide what does not reach the backbone.
        torch.nn.init.normal_((model.score if own else model).weight, std=0.3)
        values = Value(model, critic, asked, 10)
    reading = [policy, *(m for m in (references.models if references else ()) if m is not None)]
    reading += [values.model] if values is not None and values.own else []
    return PolicyLearner(
        policy,
        load_tokenizer(folder),
        asked,
        Computation(
            layout,
            budget,
            logit_chunk=7,
            temperature=temperature,
            flat=flat and all(take_trees(model) for model in reading),
        ),
        total_updates=10,
        companions=Companions(references, values),
    )


def randomise(model: Any, seed: int, scale: float = 0.1) -> None:
    """New weights: every tensor moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * scale)


def prompt(tokens: Sequence[int], name: str = "p") -> Prompt:
    return Prompt(id=f"{name}/{'-'.join(map(str, tokens[:6]))}", tokens=tuple(tokens), text="")


def samples(dtype: torch.dtype = torch.float64, groups: int = 3, seed: int = 0) -> list[Sample]:
    """Groups of unequal sizes with prompts and responses of unequal lengths, a tool span inside one response, and
    one response that teaches nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist())

    out = []
    for group in range(groups):
        asked = ids(3 + 2 * group)
        for k in range(2 + group):
            said = ids(1 + (3 * k + group) % 7)
            inside = [not (k == 1 and i == 2) for i in range(len(said))]
            mask = (False,) * len(asked) + tuple(inside)
            noise = torch.randn(len(mask), generator=generator, dtype=torch.float64)
            rollout = Rollout(
                tokens=asked + said,
                mask=mask,
                text="",
                finish_reason="stop",
                logprobs=tuple((-3 + 0.3 * noise * torch.tensor(mask)).tolist()),
                versions=tuple(0 if m else -1 for m in mask),
            )
            learnt = torch.tensor(mask)
            if group == 2 and k == 3:
                learnt = torch.zeros_like(learnt)
            advantage = torch.randn(1, generator=generator, dtype=dtype)
            shift = torch.randn(len(mask), generator=generator, dtype=torch.float64)
            out.append(
                Sample(
                    rollout,
                    group,
                    learnt,
                    advantage * learnt,
                    previous=(-3 + 0.2 * shift).to(dtype),
                    reference=(-3 - 0.2 * shift).to(dtype)[:, None],
                    score=float(advantage),
                )
            )
    return out


def taking_trees(model: Any) -> Any:
    """A model that stands beside a tiny learner's, and is read as that one is."""
    assert take_trees(model)
    return model

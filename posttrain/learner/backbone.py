"""A causal language model seen as hidden states and an output head, so that logits need never be built whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.errors import ModelError
from posttrain.learner.attention import NAME
from posttrain.learner.layout import Laid, Layout, lay_out
from posttrain.learner.logprobs import Chosen, Extras, chosen_logprobs
from posttrain.types import Batch


class Backbone:
    """Decoder and head of a transformers model, adapters included."""

    def __init__(self, model: Any) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner.base_model
        self.head = inner.get_output_embeddings()
        self.model = model
        if self.head is None or getattr(self.head, "bias", None) is not None:
            raise ModelError(f"{type(inner).__name__}: an output head without bias is needed to chunk its logits")

    def hidden(self, laid: Laid) -> Tensor:
        """`[M, H]`: the hidden state that predicts each masked token."""
        device = self.head.weight.device
        return predictors(self.decoder, laid, device)

    def chosen(
        self, hidden: Tensor, targets: Tensor, temperature: float, chunk: int, extras: Extras | None = None
    ) -> Chosen:
        """Log-probabilities of `targets [M]`, entropies, and what else is asked for."""
        return chosen_logprobs(hidden, self.head.weight, targets, temperature, chunk, extras)


def predictors(decoder: Any, laid: Laid, device: torch.device) -> Tensor:
    """`[M, H]`: a decoder's hidden states where the masked tokens are predicted."""
    told = {} if laid.trees is None else {"trees": laid.trees}
    if told and decoder.config._attn_implementation != NAME:
        # Another attention takes the argument too, and sees past its own sequence.
        raise ModelError(f"{type(decoder).__name__} was not asked to take trees")
    out = decoder(
        input_ids=laid.input_ids.to(device),
        position_ids=laid.position_ids.to(device),
        attention_mask=None if laid.attention_mask is None else laid.attention_mask.to(device),
        use_cache=False,
        **told,
    ).last_hidden_state
    return out[laid.row.to(device), laid.column.to(device)]


@torch.no_grad()
def prove_layout(model: Any, layout: Layout) -> None:
    """Check on three short sequences that this model gives the same log-probabilities in `layout` as on its own.

    Raises ModelError where the model's attention or head is not what the layout assumes (sliding windows, recurrent
    state, scaled or capped logits), naming a layout that is safe.
    """
    config = model.config.get_text_config()
    kinds = _attentions(config)
    if layout != "rows" and kinds - {"full_attention"}:
        raise ModelError(
            f"hardware.learner.layout: {layout!r} needs full attention in every layer, but this model has "
            f"{', '.join(sorted(kinds))}; use layout: rows"
        )
    training = model.training
    model.eval()
    vocabulary = min(config.vocab_size, 97)
    prompt = [t % vocabulary for t in (11, 5, 23, 7)]
    sequences = [[*prompt, *(t % vocabulary for t in tail)] for tail in ((3, 9), (14,), (6, 2, 8))]
    batch = _probe_batch(sequences, len(prompt))
    backbone = Backbone(model)
    got, *_ = backbone.chosen(
        backbone.hidden(lay_out(batch, layout)), batch.tokens[batch.mask].to(model.device), 1.0, 4
    )
    plain = []
    for sequence in sequences:
        ids = torch.tensor([sequence], device=model.device)
        wide = torch.promote_types(model.dtype, torch.float32)
        table = model(input_ids=ids, use_cache=False).logits[0].to(wide).log_softmax(-1)
        plain.append(table[:-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0])
    gap = float((got - torch.cat(plain)).abs().max())
    model.train(training)
    bound = 0.25 if model.dtype in (torch.bfloat16, torch.float16) else 1e-4
    if not gap <= bound:
        raise ModelError(
            f"hardware.learner.layout: {layout!r} gives this model log-probabilities that are {gap:.3g} off "
            f"(bound {bound:g}); " + ("its output head is not a plain projection" if layout == "rows" else "use rows")
        )


def _attentions(config: Any) -> set[str]:
    """Kinds of attention that a model's layers have."""
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])


@torch.no_grad()
def take_trees(model: Any) -> bool:
    """Let a model's attention be told what lies in a row (`Laid.trees`). False, and nothing changed, where its states
    would be others: the architecture does not pass it on, or attends differently.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, before = inner.config, inner.config._attn_implementation
    if before != "sdpa" or _attentions(config.get_text_config()) != {"full_attention"}:
        return False
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else getattr(inner, inner.base_model_prefix)
    training = inner.training
    inner.set_attn_implementation(NAME)
    inner.eval()
    try:
        right = states_agree(decoder, "tree", next(inner.parameters()).device, flat=True)
    except TypeError:
        # A decoder that takes no further arguments.
        right = False
    inner.train(training)
    if not right:
        inner.set_attn_implementation(before)
    return right


@torch.no_grad()
def states_agree(decoder: Any, layout: Layout, device: torch.device, flat: bool = False) -> bool:
    """Whether a decoder's states in `layout` are those of sequences on their own, on three short ones."""
    batch = _probe_batch([[11, 5, 23, 7, 3, 9], [11, 5, 23, 7, 14], [11, 5, 23, 7, 6, 2, 8]], 4)
    plain, laid = (predictors(decoder, lay_out(batch, *how), device) for how in (("rows",), (layout, flat)))
    bound = 0.05 if plain.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return bool((laid - plain).abs().max() <= bound * plain.abs().max())


def _probe_batch(sequences: list[list[int]], prompt: int) -> Batch:
    lengths = torch.tensor([len(s) for s in sequences])
    position = torch.cat([torch.arange(int(n)) for n in lengths])
    count = int(lengths.sum())
    return Batch(
        tokens=torch.tensor([t for s in sequences for t in s]),
        position=position,
        segment=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        mask=position >= prompt,
        behaviour=torch.zeros(count),
        advantages=torch.zeros(count),
        lengths=lengths,
        groups=torch.zeros(len(sequences), dtype=torch.long),
        scores=torch.zeros(len(sequences)),
        offsets=torch.zeros(len(sequences)),
        index=torch.arange(len(sequences)),
        author=torch.zeros(len(sequences), dtype=torch.long),
        total_tokens=count,
        total_sequences=len(sequences),
    )

"""A policy's low-rank adapter as tensors of its own, beside the weights of its base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import ModelError
from posttrain.models.checkpoint import adapted_layers, plain_name, with_adapters
from posttrain.recipe import Lora

ENDINGS = (".lora_A.weight", ".lora_B.weight")
"""Of a module's two tensors, `[rank, in]` and `[out, rank]`: it adds scale x B A x (2106.09685)."""


@dataclass(frozen=True)
class Form:
    """What an engine is told of an adapter before its tensors come."""

    rank: int
    scale: float
    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor of a complete adapter, by its name: the module's, and one of `ENDINGS`."""

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(name.removesuffix(ENDINGS[0]) for name in self.shapes if name.endswith(ENDINGS[0]))

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules' last names."""
        return tuple(sorted({name.rsplit(".", 1)[-1] for name in self.modules}))


def expected_adapter(folder: Path, lora: Lora, trust_remote_code: bool = False) -> Form:
    """The adapter that a recipe puts beside a checkpoint's weights, from its config alone. Raises ModelError for
    targets that no module has.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return Adapter(with_adapters(model, lora)).form


class Adapter:
    """The adapter inside a peft model, and its base without it. Neither is ever changed here.

    `whole` makes of a rank's part of a tensor what is yielded, `opened` says which of these lists of tensors can be
    read next: as for `merged_weights`. Raises ModelError for an adapter that is more than scale x B A beside linear
    projections.
    """

    def __init__(
        self,
        model: nn.Module,
        whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        opened: Callable[[Sequence[Sequence[Tensor]]], Iterable[int]] = lambda needs: range(len(needs)),
    ) -> None:
        self.model, self.whole, self.opened = model, whole, opened
        self._tensors: list[tuple[str, Tensor]] = []
        kinds = {_kind(plain_name(name), layer) for name, layer in adapted_layers(model)}
        for name, tensor in model.named_parameters():
            if ".lora_" in name:
                self._tensors.append((_plain_adapter(name), tensor))
            elif ".modules_to_save." in name:
                raise ModelError(f"the adapter trains {plain_name(name)} whole, which is no pair of narrow matrices")
        if len(kinds) != 1:
            raise ModelError(f"the adapter has {len(kinds)} ranks and scales where one is served apart")
        ((rank, scale),) = kinds
        shapes = {name: _shape(tensor) for name, tensor in self._tensors}
        self.form = Form(rank, scale, shapes)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all `form.shapes`."""
        yield from self._read(self._tensors)

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every tensor of the policy without its adapter, tied aliases included."""
        state = self.model.state_dict(keep_vars=True)
        yield from self._read([(plain_name(n), t) for n, t in state.items() if ".lora_" not in n])

    def _read(self, tensors: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for number in self.opened([[tensor] for _, tensor in tensors]):
            name, tensor = tensors[number]
            yield name, self.whole(tensor.detach())


def _plain_adapter(name: str) -> str:
    module, _, rest = plain_name(name).partition(".lora_")
    return f"{module}.lora_{rest.split('.')[0]}.weight"


def _shape(tensor: Any) -> tuple[int, ...]:
    # Under ZeRO-3 a parameter is empty between its uses, and says here how large it is.
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _kind(name: str, layer: Any) -> tuple[int, float]:
    """Rank and scale of one layer. Raises ModelError for one that does anything else."""
    from peft.tuners.lora import Linear

    wrong = None
    active = list(layer.active_adapters)
    if not isinstance(layer, Linear):
        wrong = f"it is {type(layer.get_base_layer()).__name__}, no linear projection"
    elif len(active) != 1:
        wrong = f"it has {len(active)} adapters at one time"
    elif layer.lora_variant:
        wrong = f"its variant is {next(iter(layer.lora_variant.values()))!r}"
    elif layer.fan_in_fan_out:
        wrong = "its weight lies transposed"
    elif any(layer.lora_bias.values()):
        wrong = "it has a bias"
    if wrong:
        raise ModelError(f"the adapter of {name} is not scale x B A beside a projection: {wrong}")
    return layer.r[active[0]], float(layer.scaling[active[0]])


@dataclass
class Noisy:
    """An adapter that was never learnt, by which two ways of publishing are told apart.

    B is noise, scaled so that B A has `share` of the root mean square of the weights it stands beside; A is as it was.
    """

    adapter: Adapter
    share: float = 0.1
    made: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """The base with that adapter added into copies; afterwards `tensors` is what was added."""
        form = self.adapter.form
        # Copied at once: what was brought together from several ranks is let go of again.
        given = {name: tensor.to("cpu", copy=True) for name, tensor in self.adapter.tensors()}
        generator = torch.Generator().manual_seed(0)
        modules = {f"{name}.weight": name for name in form.modules}
        for name, tensor in self.adapter.base():
            if name not in modules:
                yield name, tensor
                continue
            a_name, b_name = (modules[name] + ending for ending in ENDINGS)
            a = given[a_name]
            b = torch.randn(given[b_name].shape, generator=generator)
            weight = tensor.float().cpu()
            width = float((b @ a.float()).square().mean().sqrt()) * form.scale
            b = (b * (self.share * float(weight.square().mean().sqrt()) / max(width, 1e-30))).to(a.dtype)
            self.made |= {a_name: a, b_name: b}
            yield name, (weight + form.scale * (b.float() @ a.float())).to(tensor)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.made.items()

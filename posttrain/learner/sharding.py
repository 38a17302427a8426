"""How a model's weights and gradients lie over the ranks of a world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.errors import ModelError
from posttrain.recipe import Optimizer
from posttrain.world import ALONE, World

if TYPE_CHECKING:
    from posttrain.learner.stepper import Steps

T = TypeVar("T")


class Reader(nn.Module):
    """A model whose every use is one forward pass of this module, whatever is asked of it: hooks that bring shards
    together, and let go of them again, know nothing else.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ask: Callable[[], T]) -> T:
        return ask()


class Asking(Protocol):
    """What every use of a model goes through: its reader, or the engine around it."""

    @property
    def model(self) -> Any: ...

    def __call__(self, ask: Callable[[], T]) -> T: ...


class Sharding(Protocol):
    """One way to lay a model over the ranks."""

    @property
    def world(self) -> World: ...

    @property
    def lockstep(self) -> bool:
        """Whether all ranks must make the same number of passes, as each pass is a collective."""

    def home(self, device: str) -> str:
        """Where a model is to lie that `place` is given, if `device` is where it computes."""

    def place(self, reader: Reader, apart: Sequence[nn.Parameter] = (), settings: Optimizer | None = None) -> Asking:
        """Lay the parameters out, those `apart` in their own precision, and say what the model is asked through from
        then on. Called once, before an optimiser knows them. `settings` are those of a model that is trained. Raises
        ModelError for what cannot be laid out so.
        """

    def stepper(self, reader: Asking, settings: Optimizer, total_updates: int, what: str = "policy") -> Steps:
        """What moves the trainable parameters. `what` is the model's name in errors."""

    def backward(self, reader: Asking, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's loss; over the ranks gradients add up."""

    def opened(self, needs: Sequence[Sequence[Tensor]]) -> Iterable[int]:
        """The numbers of `needs` in order, each when its parameters can be read. A collective; to be gone through."""

    def release(self, reader: Asking) -> None:
        """After a pass without a backward pass: let go of what was brought together."""

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        """What is left to be done for gradients to be sums over the ranks, once per update."""

    def master(self, parameter: Tensor) -> Tensor:
        """A full-precision copy of a parameter, laid out as the masters of one that is trained. A collective."""

    def write(self, parameter: Tensor, master: Tensor) -> None:
        """Round a tensor that is laid out as masters are into a parameter. A collective."""


@dataclass(frozen=True)
class Whole:
    """Every rank holds the model; gradients are added up once per update, in the precision of the masters."""

    world: World
    lockstep: bool = False

    def home(self, device: str) -> str:
        return device

    def place(self, reader: Reader, apart: Sequence[nn.Parameter] = (), settings: Optimizer | None = None) -> Asking:
        """Nothing moves."""
        return reader

    def stepper(self, reader: Asking, settings: Optimizer, total_updates: int, what: str = "policy") -> Steps:
        from posttrain.learner.stepper import Stepper

        return Stepper(reader.model, settings, total_updates, self, what)

    def backward(self, reader: Asking, loss: Tensor) -> None:
        loss.backward()

    def opened(self, needs: Sequence[Sequence[Tensor]]) -> Iterable[int]:
        return range(len(needs))

    def release(self, reader: Asking) -> None:
        """Nothing was brought together."""

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        self.world.add(gradients)

    def master(self, parameter: Tensor) -> Tensor:
        return widened(parameter)

    def write(self, parameter: Tensor, master: Tensor) -> None:
        parameter.copy_(master)


WHOLE = Whole(ALONE)


class Rows:
    """FSDP2: every parameter is cut along its first dimension, a layer is brought together while it computes, and its
    gradients are added up in fp32 on their way back to their shards.

    Parameters of a model that is trained are kept in fp32 (they are their own masters), and computed with in `dtype`.
    """

    lockstep = True

    def __init__(self, world: World, dtype: torch.dtype, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy

        self.world = world
        self._mesh, self._device = init_device_mesh(device, (world.size,)), device
        low = dtype in (torch.bfloat16, torch.float16)
        self._low = low
        self._policy = MixedPrecisionPolicy(dtype, torch.float32) if low else MixedPrecisionPolicy()

    def home(self, device: str) -> str:
        """The host, whatever computes: no device and no rank needs room for the whole model. A checkpoint in the dtype
        that is asked for is a view of its file there; a rank copies its own rows, one layer at a time.
        """
        return "cpu"

    def place(self, reader: Reader, apart: Sequence[nn.Parameter] = (), settings: Optimizer | None = None) -> Asking:
        from torch.distributed.fsdp import fully_shard

        widens = self._low and any(p.requires_grad for p in reader.model.parameters())
        for part in (*_layers(reader.model), reader):
            if widens:
                # From the rounded weights, as every other strategy's masters are.
                _widen(part)
            # The last, everything else, embeddings and head among it, is brought together around the whole pass.
            fully_shard(part, mesh=self._mesh, mp_policy=self._policy, ignored_params=set(apart))
        for parameter in apart:
            parameter.data = parameter.data.to(self._device)
        return reader

    def stepper(self, reader: Asking, settings: Optimizer, total_updates: int, what: str = "policy") -> Steps:
        from posttrain.learner.stepper import Stepper

        return Stepper(reader.model, settings, total_updates, self, what)

    def backward(self, reader: Asking, loss: Tensor) -> None:
        # Gradients are averaged on their way to the shards.
        (loss * self.world.size).backward()

    def opened(self, needs: Sequence[Sequence[Tensor]]) -> Iterable[int]:
        return range(len(needs))

    def release(self, reader: Asking) -> None:
        reader.reshard()  # type: ignore[attr-defined]

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        # A small head beside a sharded model is whole on every rank.
        averaged(self.world, [g for g in gradients if not isinstance(g, DTensor)])

    def master(self, parameter: Tensor) -> Tensor:
        return widened(parameter)

    def write(self, parameter: Tensor, master: Tensor) -> None:
        parameter.copy_(master)


def _layers(model: Any) -> Sequence[nn.Module]:
    """The decoder's blocks. Raises ModelError where the architecture does not say which they are."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else getattr(inner, inner.base_model_prefix, inner)
    layers = getattr(decoder, "layers", getattr(decoder, "h", None))
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"hardware.learner.strategy: fsdp2 shards a decoder's list of layers, and {type(inner).__name__} has none "
            "under a known name; use ddp"
        )
    return list(layers)


def _widen(module: nn.Module) -> None:
    """What of a module is not cut yet, in fp32."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor) and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()


def widened(parameter: Tensor) -> Tensor:
    """A copy in fp32 at least."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


def averaged(world: World, gradients: Sequence[Tensor]) -> None:
    """Replace gradients of a loss that was multiplied by the number of ranks by the sums of the loss's own."""
    world.add(gradients)
    for gradient in gradients:
        gradient.div_(world.size)


def full(tensor: Tensor) -> Tensor:
    """A tensor brought together from all its shards, on every rank; a plain one as it is. A collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole

"""Adapters inside a vLLM engine of this process: put beside its weights from memory, one at a time.

vLLM's own way in is a folder with files. Here its manager is given the tensors themselves, under an id and a name that
no other version ever has; a request that names an adapter which is gone fails: there is no folder to load it from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from posttrain.errors import ModelError, SyncError
from posttrain.models.adapters import ENDINGS, Form
from posttrain.rollout.intake import Intake

NOWHERE = "/nonexistent/posttrain-adapters-come-from-memory"
"""A request must name a folder; this one is never read."""


def settings(folder: Path, form: Form, trust_remote_code: bool) -> dict[str, Any]:
    """What an engine is started with so that it takes such adapters. Raises ModelError, with the reason, where this
    vLLM has no such thing for the model, the rank or the device.
    """
    try:
        from vllm.config.lora import MaxLoRARanks
        from vllm.engine.arg_utils import EngineArgs
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper  # noqa: F401
        from vllm.model_executor.model_loader.utils import get_model_cls
        from vllm.model_executor.models import supports_lora
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ModelError(f"this vLLM takes no adapters from memory ({error})") from None
    if not hasattr(LoRAModel, "from_lora_tensors"):
        raise ModelError("this vLLM takes no adapters from memory (LoRAModel has no from_lora_tensors)")
    try:
        current_platform.get_punica_wrapper()
    except NotImplementedError:
        raise ModelError(f"this vLLM computes no adapters on {current_platform.device_type}") from None
    able = sorted(get_args(MaxLoRARanks))
    room = next((rank for rank in able if rank >= form.rank), None)
    if room is None:
        raise ModelError(f"model.lora.rank: {form.rank}, but this vLLM has room for {able[-1]} at most")
    config = EngineArgs(model=str(folder), trust_remote_code=trust_remote_code).create_model_config()
    found = get_model_cls(config)
    if not supports_lora(found):
        raise ModelError(f"vLLM's {found.__name__} takes no adapters")
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": room,
        "lora_target_modules": list(form.targets),
    }


class Adapters:
    """The one adapter that an engine holds. `request` is what a generation is asked with; None: the base alone."""

    def __init__(self, engine: Any, form: Form) -> None:
        """Raises ModelError where the engine has no place for one of the adapter's modules."""
        self.engine, self.form = engine, form
        self.request: Any = None
        # vLLM's own warm-up uses the first ids.
        self._ids = itertools.count(1001)
        for homeless in engine.apply_model(lambda model: _homeless(model, form.modules)):
            if homeless:
                raise ModelError(f"vLLM has no place for the adapter of {homeless[0]} ({len(homeless)} in all)")

    def attach(self, tensors: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Put a complete adapter in the place of the one before. Raises SyncError for one that is not complete; then
        there is none.
        """
        from vllm.lora.request import LoRARequest

        self.request, number = None, next(self._ids)
        self.engine.apply_model(_emptied)
        # Copies: vLLM multiplies what it is given in place, and these would be the trainer's own weights.
        taken = {name: _taken(name, tensor, self.form.scale) for name, tensor in Intake(self.form.shapes)(tensors)}
        self.engine.apply_model(lambda model: _put(model, number, self.form, taken))
        self.request = LoRARequest(f"version-{version}-{number}", number, NOWHERE)

    def forget(self) -> None:
        """The base alone: a reload of its weights has dropped the adapter."""
        self.request = None

    def held(self) -> list[int]:
        """The ids of all adapters in the engine's memory."""
        found: list[list[int]] = self.engine.apply_model(lambda model: sorted(model.lora_manager.list_adapters()))
        return found[0]


@torch.no_grad()
def _taken(name: str, tensor: Tensor, scale: float) -> Tensor:
    """A copy on the CPU, as vLLM keeps its own; B with the scale in it, so that it is rounded once."""
    if name.endswith(ENDINGS[1]):
        return (tensor.float() * scale).to("cpu", tensor.dtype, copy=True)
    return tensor.to("cpu", copy=True)


def _homeless(model: Any, modules: Sequence[str]) -> list[str]:
    """Of these modules, by their names in a checkpoint, those that the engine's model has no place for."""
    from vllm.lora.utils import parse_fine_tuned_lora_name

    manager, places = model.lora_manager, set()
    for name in manager.modules:
        prefix, _, last = name.rpartition(".")
        for part in manager.packed_modules_mapping.get(last, [last]):
            places.add(f"{prefix}.{part}".removeprefix("."))
    renames = _renames(model)
    return [name for name in modules if parse_fine_tuned_lora_name(name + ENDINGS[0], renames)[0] not in places]


def _renames(model: Any) -> Any:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def _emptied(model: Any) -> None:
    model.lora_manager.remove_all_adapters()


def _put(model: Any, number: int, form: Form, tensors: dict[str, Tensor]) -> None:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = model.lora_manager
    # The scale is in B already: alpha is the rank.
    helper = PEFTHelper(r=form.rank, lora_alpha=form.rank, target_modules=list(form.targets))
    dtype = manager.lora_config.lora_dtype
    lora = LoRAModel.from_lora_tensors(number, tensors, helper, "cpu", dtype, weights_mapper=_renames(model))
    manager.add_adapter(lora)
    manager.activate_adapter(number)
    lost = sorted(set(lora.loras) - set(manager.modules))
    if lost or set(manager.list_adapters()) != {number} or number not in manager.lora_index_to_id:
        raise SyncError(f"the engine did not take adapter {number} whole: {', '.join(lost[:3]) or 'another is there'}")

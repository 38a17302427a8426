"""Questions put to a language model of its own: a template of columns as the token ids it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.models.location import locate
from posttrain.models.scoring import load_language_model, newest_checkpoint
from posttrain_reward_models.measured import STAGE, place

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def placeholders(template: str) -> tuple[str, ...]:
    """The names in braces, each once, in their order."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(template)))


def filled(template: str, values: Mapping[str, Any]) -> str:
    """The template with every name replaced, once: what is filled in is not read again."""
    return _PLACEHOLDER.sub(lambda match: as_text(values[match[1]]), template)


def as_text(value: Any) -> str:
    """A column as a model reads it: text as it stands, of messages the contents, of the rest what Python prints."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return "\n\n".join(str(message["content"]) for message in value)
    return str(value)


def language_model(path: str, dtype: str, device: str, key: str = "path") -> tuple[Any, Any]:
    """A language model and its tokenizer; raises ValueError or ModelError where there is none.

    `dtype` is a name of torch's, `device` one of torch's or auto.
    """
    import torch

    from posttrain.models.checkpoint import load_tokenizer
    from posttrain.models.gguf import checkpoint_folder

    if path.startswith(STAGE):
        raise ValueError(f"{key}: {path!r} is made by a stage of a pipeline; train the pipeline's own file")
    folder = found(path, key) or checkpoint_folder(path, key=key)
    return load_language_model(folder, getattr(torch, dtype), place(device)), load_tokenizer(folder)


def found(path: str, key: str = "path") -> Path | None:
    """The folder of a language model; None where it is to be made, fetched or unpacked first. Raises ValueError for a
    reward model, ModelError for nothing.
    """
    if path.startswith(STAGE):
        return None
    if Path(path).expanduser().is_dir():
        folder = newest_checkpoint(path, key)
        if "SequenceClassification" in (folder / "config.json").read_text(encoding="utf-8"):
            raise ValueError(f"{key}: {path!r} is a reward model, not a language model; name it as a Classifier")
        return folder
    locate(path, key)
    return None

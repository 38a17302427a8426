"""A model's location to a local folder that transformers and vLLM load; GGUF is dequantised into it once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

from posttrain.errors import ModelError
from posttrain.models.location import Location, locate
from posttrain.places import cache_root

CACHE_FORMAT = 1
"""Part of the cache key: goes up when what a dequantised folder holds changes."""


def checkpoint_folder(path: str, revision: str | None = None, key: str = "model.path") -> Path:
    """The folder with the model's safetensors, tokenizer, chat template and generation defaults.

    Downloads from the hub, or dequantises GGUF into the cache, when that has not been done before. Raises ModelError.
    """
    location = locate(path, key)
    if location.kind == "folder":
        assert location.file is not None
        return location.file
    if location.kind == "gguf":
        return dequantised(location)
    try:
        return Path(snapshot_download(path, revision=revision, ignore_patterns=["*.gguf", "*.pth", "original/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{key}: {path!r} is no folder here and could not be fetched from the hub ({type(error).__name__}: "
            f"{reason}); give a folder, a .gguf file, pkg://package/file, or a hub id that can be reached"
        ) from None


def dequantised(location: Location) -> Path:
    """Dequantise a GGUF file into a cached folder, named by the file's content; complete or absent, never half."""
    assert location.file is not None
    with location.file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    name = f"{location.file.stem}-{digest}-v{CACHE_FORMAT}-transformers{__version__.split('.')[0]}"
    target = cache_root() / "models" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        _write_plain(location.file, work)
        os.chmod(work, 0o755)
        work.rename(target)
    except OSError:
        # Another process may have finished the same work first: its folder is as good.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _write_plain(file: Path, folder: Path) -> None:
    source, name = str(file.parent), file.name
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    config = loaded.config
    # transformers refuses to save a model that is marked as quantised; these weights no longer are.
    plain = type(config)(**{k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        model = type(loaded)(plain)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)

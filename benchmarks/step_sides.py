"""The two sides of `step.py`, each in a process of its own that does one step whenever it is told to."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.step_cases import ROOT, Job, recipe_of
from benchmarks.step_reward import spread

NEVER = "<|never|>"
NAMED = {
    "generate": ("rollout/seconds",),
    "learn": ("learn/seconds",),
    "publish": ("sync/seconds", "sync/switch_seconds"),
}
"""posttrain's metrics of each phase."""


class EndError(Exception):
    """The side was told to end."""


class Leash:
    """A side's end of the pipe: it says what a step took, and waits for the next one."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.started, self.worked = pipe, 0.0, 0.0

    def wait(self, **about: Any) -> None:
        """Say that a step is over, and what is known of it; return when the next one begins. Raises EndError."""
        seconds, worked = time.perf_counter() - self.started, time.process_time() - self.worked
        self.pipe.send({"seconds": seconds, "processor": worked, "peak": peak(), **about})
        if self.pipe.recv() == "end":
            raise EndError
        self.started, self.worked = time.perf_counter(), time.process_time()


def peak() -> float:
    """Bytes this process had at its peak: on a GPU what torch reserved there, else resident memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_reserved())
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def serve(side: str, job: Job, pipe: Any) -> None:
    """The body of a side's process: build, then one step whenever told to."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    job.work.mkdir(parents=True, exist_ok=True)
    with (job.work / "log").open("w") as log:
        # What the libraries print would stand in the middle of the table.
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        {"ours": ours, "trl": trl}[side](job, Leash(pipe))
    except EndError:
        pipe.send({})
    except BaseException:
        pipe.send({"error": traceback.format_exc()})
        sys.exit(1)


def ours(job: Job, leash: Leash) -> None:
    """The loop of a run, wired as `posttrain train` does it; a sink stops it at the border of each step."""
    from posttrain.build import wire
    from posttrain.build.check import check
    from posttrain.build.reading import read
    from posttrain.loops.offline import offline
    from posttrain.loops.online import online
    from posttrain.metrics import RunFolder
    from posttrain.recipe import dump, load

    path = recipe_of(job)
    checked = check(load(path), str(path))
    folder = RunFolder(checked.recipe.run.folder)
    with folder.lock():
        checkpoint = wire.open_checkpoint(checked.recipe)
        folder.open(dump(checked.recipe), device=checkpoint.device)
        data = read(checked, checkpoint)
        sinks = [Border(leash)]
        if job.shape.kind == "online":
            with wire.wired_online(checked, folder, sinks, data, checkpoint) as sampled:
                online(sampled)
        else:
            with wire.wired_offline(checked, folder, sinks, data, checkpoint) as given:
                offline(given)


class Border:
    """A sink: it hears a step's own metrics when roll-outs and metrics are on disk."""

    def __init__(self, leash: Leash) -> None:
        self.leash = leash

    def write(self, step: int, values: Mapping[str, float]) -> None:
        about = {phase: sum(values.get(name, 0.0) for name in names) for phase, names in NAMED.items()}
        tokens = values.get("rollout/tokens", values.get("data/tokens", 0.0))
        # Writing is left out: it has the pause between two turns in it.
        kinds = ("learn/", "sync/", "work/", "parity/")
        parts = {n: v for n, v in values.items() if n.startswith(kinds)}
        self.leash.wait(**about, tokens=tokens, parts=parts)

    def close(self) -> None:
        pass


class Clocks:
    """Seconds by name since they were last taken."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.training_ended = 0.0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        found, self.spent = self.spent, defaultdict(float)
        return found


class Clocked:
    """In front of a trainer of TRL's: reads the clock around its own methods and changes nothing in them."""

    clocks: Clocks

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(inputs, dict):
            self.clocks.spent["tokens"] += float(inputs["attention_mask"].sum())
        with self.clocks.of("training"):
            found = super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]
        self.clocks.training_ended = time.perf_counter()
        return found

    def _prepare_inputs(self, *inputs: Any, **named: Any) -> Any:
        with self.clocks.of("prepare"):
            return super()._prepare_inputs(*inputs, **named)  # type: ignore[misc]

    def _generate(self, *inputs: Any, **named: Any) -> Any:
        with self.clocks.of("generate"):
            found = super()._generate(*inputs, **named)  # type: ignore[misc]
        self.clocks.spent["tokens"] += sum(map(len, found[1]))
        return found


def trl(job: Job, leash: Leash) -> None:
    """TRL's own trainer; a callback stops it at the border of each step."""
    import torch
    from transformers import TrainerCallback, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()
    clocks = Clocks()

    class Stop(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            leash.wait(threads=float(torch.get_num_threads()))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            spent = clocks.take()
            after = time.perf_counter() - clocks.training_ended
            learn = spent["training"] - spent["prepare"] + after
            leash.wait(generate=spent["generate"], learn=learn, publish=0.0, tokens=spent["tokens"])

    set_seed(0)
    trainer = _trainer(job)
    trainer.clocks = clocks
    trainer.add_callback(Stop())
    trainer.train()


def _trainer(job: Job) -> Any:
    import trl as library
    from datasets import Dataset
    from peft import LoraConfig

    from posttrain.recipe import Lora

    kind = {"online": "GRPO", "pairs": "DPO", "texts": "SFT"}[job.shape.kind]
    base = getattr(library, f"{kind}Trainer")
    rows = [_messages(json.loads(line)) for line in job.rows.read_text().splitlines()]
    own: dict[str, Any] = {}
    if kind == "GRPO":
        own["processing_class"] = _unending(job.model)
        own["reward_funcs"] = _rewards
    if job.adapter:
        lora = Lora()
        own["peft_config"] = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM"
        )
    return type("Timed", (Clocked, base), {})(
        model=str(job.model),
        args=getattr(library, f"{kind}Config")(**_settings(job)),
        train_dataset=Dataset.from_list(rows),
        **own,
    )


def _unending(folder: Path) -> Any:
    """The tokenizer with an end token behind the model's vocabulary, which is never sampled: this trainer wants one."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", truncation_side="left")
    room = AutoConfig.from_pretrained(folder).vocab_size - len(tokenizer)
    tokenizer.add_tokens([*(f"<|behind-{i}|>" for i in range(room)), NEVER], special_tokens=True)
    tokenizer.eos_token = NEVER
    return tokenizer


def _settings(job: Job) -> dict[str, Any]:
    shape, micro = job.shape, job.micro_batch
    units = shape.prompts if shape.kind == "pairs" else shape.sequences
    own: dict[str, Any] = {"max_length": None}
    if shape.kind == "online":
        own = {
            "num_generations": shape.responses,
            "max_completion_length": shape.answer,
            "temperature": 1.0,
            # What posttrain's row has: no reference, a mean over tokens of a mean over sequences.
            "beta": 0.0,
            "loss_type": "grpo",
        }
    return {
        "output_dir": str(job.work / "trl"),
        "max_steps": 10**6,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": units // micro,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": job.dtype == "bfloat16",
        # Master weights in fp32, as on the other side.
        "model_init_kwargs": {"dtype": "float32"},
        "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device != "cpu",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        **own,
    }


def _messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row's texts as one message each."""
    roles: Callable[[str], str] = lambda column: "user" if column == "prompt" else "assistant"  # noqa: E731
    return {column: [{"role": roles(column), "content": text}] for column, text in row.items()}


def _rewards(completions: list[Any], **_: Any) -> list[float]:
    return [spread(completion[0]["content"]) for completion in completions]

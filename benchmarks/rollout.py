"""Roll-out tokens a second through posttrain against those of vLLM's own `LLM.generate`, in turn in one process.

python benchmarks/rollout.py [--compile] [--prompts 8] [--responses 8] [--prompt-tokens 44] [--tokens 64] [--rounds 5]

All ways ask the same engine, started with posttrain's settings, about the same prompts, and every response has its full
length: the model has no end token. The engine's prefix cache is emptied before each turn.

sampler     `VllmSampler.generate`: a salt and a seed for each request, ids and log-probabilities checked and made into
            roll-outs with weight versions and text
collect     a step's `collect` with that sampler and no grading: taking prompts, deriving seeds, grouping, metrics
raw         `LLM.generate` on the same ids with the same sampling (a seed for each request, the sampled token's
            log-probability, no text), its outputs left as they are
plain       the same without seeds, log-probabilities and salt, one request a prompt with `n` responses: what these
            cost, for scale; training needs them

Each ratio is a round's tokens a second over raw's, with its spread; .95 is wanted of sampler and collect.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.step import chosen_dtype, machine  # noqa: E402
from benchmarks.step_cases import MODEL, Job, Shape, endless, recipe_of, rows_of, write_rows  # noqa: E402

WANTED = 0.95
Ways = dict[str, Callable[[], int]]
"""Each draws a step's responses and says how many tokens they have."""


def ways_of(job: Job, compiled: bool) -> Ways:
    """The engine started and filled, and four ways to ask it."""
    from posttrain.algorithms.state import RowState
    from posttrain.build import wire
    from posttrain.build.check import check
    from posttrain.build.reading import read
    from posttrain.data.stream import PromptStream
    from posttrain.models.checkpoint import load_policy, merged_weights
    from posttrain.recipe import load
    from posttrain.rollout import Request, request_seed
    from posttrain.rollout.collect import Chosen, Draw, Ungraded, collect
    from posttrain.types import Sampling

    path = recipe_of(job)
    checked = check(load(path, [f"hardware.sampler.compile={str(compiled).lower()}"]), str(path))
    recipe = checked.recipe
    checkpoint = wire.open_checkpoint(recipe)
    data = read(checked, checkpoint)
    sampler: Any = wire.make_sampler(recipe, checkpoint, data.max_length)
    model = load_policy(checkpoint.folder, recipe.model, checkpoint.dtype, checkpoint.device)
    sampler.load(merged_weights(model), 0)
    from vllm import SamplingParams

    sampling = Sampling(temperature=1.0, max_tokens=job.shape.answer)
    prompts, size = data.train[: job.shape.prompts], job.shape.responses
    requests = [Request(p, request_seed(0, "train", 1, p.id, k)) for p in prompts for k in range(size)]
    stream, step = PromptStream(data.train, 0), iter(range(1, 10**6))
    settings = {"temperature": 1.0, "max_tokens": job.shape.answer, "detokenize": False}

    def sampled() -> int:
        return sum(r.length for r in sampler.generate(requests, sampling))

    def collected() -> int:
        chosen = Chosen(checked.algorithm, RowState.of(checked.algorithm))
        draw = Draw(len(prompts), size, sampling, 0)
        found = collect(sampler, stream, Ungraded(), chosen, draw, next(step))
        return sum(r.length for group in found.groups for r in group.rollouts)

    def raw() -> int:
        asked = [{"prompt_token_ids": list(r.prompt.tokens), "cache_salt": "raw"} for r in requests]
        parameters = [SamplingParams(seed=r.seed, logprobs=0, **settings) for r in requests]
        return _tokens(sampler.engine.generate(asked, parameters, use_tqdm=False))

    def plain() -> int:
        asked = [{"prompt_token_ids": list(p.tokens)} for p in prompts]
        return _tokens(sampler.engine.generate(asked, SamplingParams(n=size, **settings), use_tqdm=False))

    def fresh(way: Callable[[], int]) -> Callable[[], int]:
        def asked() -> int:
            if not sampler.engine.reset_prefix_cache():
                raise SystemExit("the engine did not empty its prefix cache")
            return way()

        return asked

    named = {"raw": raw, "sampler": sampled, "collect": collected, "plain": plain}
    return {name: fresh(way) for name, way in named.items()}


def _tokens(outputs: Any) -> int:
    return sum(len(said.token_ids) for output in outputs for said in output.outputs)


def turns(ways: Ways, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Tokens a second of each way in each round, after one that warms up. The order turns round each time."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            drawn = ways[name]()
            seconds = time.perf_counter() - started
            if drawn != tokens:
                raise SystemExit(f"{name}: {drawn} tokens instead of {tokens}")
            print(f"  {name} {seconds:.1f} s", file=sys.stderr, flush=True)
            if number:
                found[name].append(drawn / seconds)
    return found


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="let the engine compile its graph")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=44)
    parser.add_argument("--tokens", type=int, default=64, help="of a response")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, help="write what was measured there, as JSON")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    """Print tokens a second of each way, and its ratio to the engine's own."""
    import torch

    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = chosen_dtype(arguments.dtype, device)
    shape = Shape(
        "rollout", "online", arguments.prompt_tokens, arguments.tokens, arguments.prompts, arguments.responses
    )
    with tempfile.TemporaryDirectory(prefix="posttrain-rollout-") as folder:
        from posttrain.models.checkpoint import load_tokenizer

        place = Path(folder)
        model = endless(arguments.model, place / "model")
        rows = write_rows(place / "rows.jsonl", rows_of(shape, load_tokenizer(model))[: shape.prompts])
        hardware = ROOT / "configs" / "hardware" / f"{device}.yaml"
        job = Job(shape, False, model, rows, place / "work", dtype, device, 1e-6, 0, hardware)
        started = time.perf_counter()
        ways = ways_of(job, arguments.compile)
        ready = time.perf_counter() - started
        found = turns(ways, arguments.rounds, shape.learnt)
    about = f"{shape.sequences} responses of {shape.answer} tokens to {shape.prompts} prompts of {shape.prompt}"
    print(f"{about}, {dtype}, compile {arguments.compile}: ready in {ready:.0f} s, {arguments.rounds} rounds in turn")
    for name, rates in found.items():
        ratios = [a / b for a, b in zip(rates, found["raw"], strict=True)]
        line = f"{name:<9}{statistics.median(rates):>8.0f} tokens/s [{min(rates):.0f}-{max(rates):.0f}]"
        if name != "raw":
            line += f"   over raw {statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]"
        if name in ("sampler", "collect"):
            line += f"   wanted {WANTED}"
        print(line)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        named = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        out = {"machine": machine(device), "arguments": named, "dtype": dtype, "ready": ready, "rates": found}
        arguments.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    from posttrain.build.process import terminable

    with terminable():
        main(parsed())

"""Responses of another policy than the one that is trained: of the reference, or of one it has been."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.hybrid import Hybrid
from posttrain.metrics.durable import sync
from posttrain.recipe import Reference
from posttrain.rollout import Request, Sampler
from posttrain.rollout.collect import Collected
from posttrain.types import Group, Rollout, Sampling
from posttrain.world import ALONE, World


class Opponents:
    """Who stands against the policy: the first reference, or one of the last `pool_size` policies it has been.

    A pool's weights are kept in `folder`, one file for each step after which the reference moved.
    """

    def __init__(self, algorithm: Algorithm, engine: Hybrid, folder: Path, seed: int, world: World = ALONE) -> None:
        self.engine, self.folder, self.seed, self.world = engine, folder, seed, world
        self.pool_size = int(algorithm.opponent.settings.get("pool_size", 0))

    @contextmanager
    def against(self, step: int) -> Iterator[Sampler]:
        """A sampler whose requests in an opponent's name are answered by one, the same throughout a step."""
        # One rank looks for all: another could find what the first is about to write, and go on alone.
        if self.pool_size and not self.world.shared(lambda: self._known(0)):
            self._remember(0)
        with self.engine.generating():
            yield _Versus(self, step)

    def weights(self, step: int) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of a step's opponent."""
        known = self._known(step - 1)[-self.pool_size :] if self.pool_size else []
        if not known:
            return self.engine.learner.reference_weights()
        chosen = random.Random(f"{self.seed}/{step}").choice(known)
        return iter(load_file(self._file(chosen)).items())

    def note(self, reference: Reference, step: int) -> None:
        """Remember what the reference has become, where it has moved after this step."""
        if self.pool_size and reference.refresh != "never" and step % reference.every == 0:
            self._remember(step)

    def _remember(self, step: int) -> None:
        weights = self.engine.learner.reference_weights()
        if self.world.rank:
            # All ranks go through the weights, the first one keeps them.
            deque(weights, maxlen=0)
        else:
            self._write(step, weights)
        self.world.wait()

    def _write(self, step: int, weights: Iterator[tuple[str, Tensor]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(step).with_suffix(".partial")
        # A tied head is the embedding under a second name, and each name needs memory of its own in the file.
        tensors = {name: t.detach().cpu().clone() for name, t in weights}
        save_file(tensors, partial)
        sync(partial)
        partial.rename(self._file(step))
        sync(self.folder)

    def _known(self, step: int) -> list[int]:
        """Steps up to `step` whose policies are remembered."""
        return sorted(s for f in self.folder.glob("step-*.safetensors") if (s := int(f.stem.split("-")[1])) <= step)

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"


class _Versus:
    """Implements `Sampler.generate` by two policies; the engine holds one at a time."""

    def __init__(self, opponents: Opponents, step: int) -> None:
        self.opponents, self.step = opponents, step
        self.version: int | None = opponents.engine.sampler.version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        with self.opponents.engine.within("rollout"):
            return self._said(requests, sampling)

    def _said(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        out: dict[int, Rollout] = {}
        engine = self.opponents.engine
        own = [i for i, r in enumerate(requests) if r.author == "policy"]
        others = [i for i, r in enumerate(requests) if r.author == "opponent"]
        if own:
            with engine.generating() as sampler:
                out |= dict(zip(own, sampler.generate([requests[i] for i in own], sampling), strict=True))
        if others:
            with engine.playing(self.opponents.weights(self.step), -1 - self.step) as sampler:
                said = sampler.generate([requests[i] for i in others], sampling)
            out |= {i: replace(r, author="opponent") for i, r in zip(others, said, strict=True)}
        return [out[i] for i in range(len(requests))]

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.opponents.engine.sampler.load(weights, version)

    def sleep(self) -> None:
        self.opponents.engine.sampler.sleep()

    def wake(self) -> None:
        self.opponents.engine.sampler.wake()


def joined(collected: Collected, given: Mapping[str, Group]) -> Collected:
    """The data's answers before the sampled ones of each group, and what they are worth."""

    def whole(group: Group) -> Group:
        own = given[group.prompt.id]
        return replace(group, rollouts=(*own.rollouts, *group.rollouts), verdicts=(*own.verdicts, *group.verdicts))

    return replace(collected, groups=[whole(group) for group in collected.groups])

"""Blocks of a recipe about data: where rows come from, which of them, and how they are asked."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from posttrain.recipe.policies import Block


class Shot(Block):
    """A solved example that is shown before the question."""

    asked: str
    said: str


class Since(Block):
    """Rows by a date, so that a benchmark can leave out what a model may have been trained on."""

    column: str
    """Of dates, or of texts that begin with one, as in 2024-08-31."""
    first: date | None = None
    """The earliest day that is kept."""
    last: date | None = None
    """The latest day that is kept."""


class SourceFields(Block):
    """What every source of prompts has in common."""

    prompt: str | None = None
    """A template over the row's columns, as in "{question} Answer with a number."; the usual columns otherwise."""
    system: str | None = None
    """A system message put before the prompt."""
    shots: tuple[Shot, ...] = ()
    """Solved examples before the question: turns of their own where the model has a chat template, text otherwise."""
    columns: dict[str, str] = Field({})
    """Names that verifiers expect, mapped to the data set's own: {answer: solution}. Or to what is made of several:
    {tests: "stored_tests(public_test_cases, private_test_cases)"}; see posttrain/data/readings.py.
    """
    since: Since | None = None
    """Keep the rows of some days only."""
    skip: int = Field(0, ge=0)
    """Leave out the first so many rows of those."""
    limit: PositiveInt | None = None
    """Keep so many rows after those."""


class ReasoningGymSource(SourceFields):
    """Problems made by a reasoning_gym task, deterministic in (task, seed, config)."""

    source: Literal["reasoning_gym"]
    task: str
    size: PositiveInt = 1000
    seed: int = 0
    config: dict[str, Any] = Field({})
    """The task's own settings."""


class FileSource(SourceFields):
    """Rows of local .jsonl, .json or .parquet files."""

    source: Literal["file"]
    path: str
    """A file, or a pattern that matches several; relative to the working directory."""


class HubSource(SourceFields):
    """A data set of the Hugging Face hub, or a folder in its layout."""

    source: Literal["hub"]
    path: str
    name: str | None = None
    data_dir: str | None = None
    """A folder of it, where it has several that are no configurations."""
    split: str = "train"
    revision: str | None = None


Source = Annotated[ReasoningGymSource | FileSource | HubSource, Field(discriminator="source")]

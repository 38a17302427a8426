"""A recipe's sources as prompts and groups, training and held out, disjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from posttrain.build.check import Checked
from posttrain.build.companions import Checkpoint
from posttrain.build.wants import new_tokens, wanted
from posttrain.data.chat import Chat
from posttrain.data.contamination import Contamination, contamination
from posttrain.data.rows import columns_of, read_rows
from posttrain.data.shapes import Wanted, require
from posttrain.data.sources import SourceReport, distinct, groups, hold_out, prompts
from posttrain.errors import DataError
from posttrain.models.checkpoint import stop_tokens
from posttrain.models.location import Location, context_length
from posttrain.recipe import Source
from posttrain.types import Group, Prompt


@dataclass
class Read:
    """What was read, and what became of the sources' rows."""

    reports: dict[str, SourceReport] = field(default_factory=dict)
    train: list[Prompt] = field(default_factory=list)
    """Prompts to be answered."""
    given: list[Group] = field(default_factory=list)
    """Answers that come with the training rows."""
    held_prompts: list[Prompt] = field(default_factory=list)
    held: list[Group] = field(default_factory=list)
    """Answers that come with the held-out rows."""
    auxiliary: list[Group] = field(default_factory=list)
    """Texts that are learnt beside the roll-outs."""
    max_length: int = 0
    """Longest prompt plus completion."""
    contamination: Contamination | None = None
    """What of the held-out rows also stands in the training rows; None without held-out rows."""


def read(checked: Checked, checkpoint: Checkpoint) -> Read:
    """Every source of the recipe, training rows that are also held out taken away. Raises DataError."""
    recipe, needs, out = checked.recipe, checked.algorithm.needs, Read()
    assert recipe.data.train is not None
    chat, room, limit = _room(checked, checkpoint)
    samples = needs.sampler or bool(recipe.rewards and recipe.data.eval)
    if recipe.data.eval:
        _read_held(checked, chat, room, limit if samples else None, out)
    if needs.given:
        _read_given(checked, recipe.data.train, chat, (room, limit), out)
    else:
        out.train, about = prompts(recipe.data.train, chat, "data.train", limit)
        out.train, removed = hold_out(out.train, out.held_prompts)
        out.reports["data.train"] = replace(about, kept=len(out.train), held_out=removed)
    if recipe.data.auxiliary:
        more = Wanted(max_length=room, max_faulty_share=recipe.data.max_faulty_share)
        out.auxiliary, about = groups(recipe.data.auxiliary.data, chat, "data.auxiliary.data", more)
        out.reports["data.auxiliary"] = about
    held = {prompt.tokens: prompt for prompt in [*out.held_prompts, *(group.prompt for group in out.held)]}
    if held:
        out.contamination = contamination(out.train, list(held.values()))
        out.contamination.refuse()
    out.max_length = _longest(checked, room, [*out.train, *out.held_prompts])
    return out


def read_held(checked: Checked, checkpoint: Checkpoint) -> Read:
    """The held-out rows alone, exactly as `read` reads them. Raises DataError."""
    chat, room, limit = _room(checked, checkpoint)
    out, recipe = Read(), checked.recipe
    samples = bool(recipe.rewards) or (checked.row is not None and checked.row.needs.sampler)
    _read_held(checked, chat, room, limit if samples else None, out)
    if out.held_prompts:
        out.max_length = _longest(checked, room, out.held_prompts)
    return out


def _room(checked: Checked, checkpoint: Checkpoint) -> tuple[Chat, int | None, int | None]:
    """The chat, the model's context, and what it leaves for a prompt."""
    recipe = checked.recipe
    chat = Chat(checkpoint.tokenizer, stop_tokens(checkpoint.folder, checkpoint.tokenizer))
    room = recipe.model.max_length or context_length(Location("folder", checkpoint.folder))
    return chat, room, recipe.data.max_prompt_tokens or (room - new_tokens(recipe, checked.row) if room else None)


def _longest(checked: Checked, room: int | None, asked: Sequence[Prompt]) -> int:
    longest = max(len(prompt.tokens) for prompt in asked) + new_tokens(checked.recipe, checked.row)
    return min(longest, room) if room else longest


def _read_given(
    checked: Checked, source: Source, chat: Chat, room_limit: tuple[int | None, int | None], out: Read
) -> None:
    """Training rows that bring answers."""
    recipe, needs, (room, limit) = checked.recipe, checked.algorithm.needs, room_limit
    asked = _wanted(checked, source, room, "data.train")
    out.given, about = groups(source, chat, "data.train", asked)
    held = _held_tokens(checked, chat, room, out)
    apart = [group for group in out.given if group.prompt.tokens not in held]
    if not apart:
        raise DataError("data: every training row also stands in data.eval; use another split, file or rows for it")
    kept = [g for g in apart if limit is None or len(g.prompt.tokens) <= limit] if needs.sampler else apart
    if not kept:
        raise DataError(f"data.train: no prompt has {limit} tokens or fewer; raise data.max_prompt_tokens")
    out.reports["data.train"] = replace(
        about,
        kept=len(kept),
        held_out=len(out.given) - len(apart),
        too_long=about.too_long + len(apart) - len(kept),
    )
    if len(kept) < recipe.optimizer.prompts_per_step:
        raise DataError(
            f"data.train: {len(kept)} rows, but optimizer.prompts_per_step: {recipe.optimizer.prompts_per_step}: a "
            "row would stand in a step twice; lower it or add rows"
        )
    out.given = kept
    out.train = [group.prompt for group in kept]


def _read_held(checked: Checked, chat: Chat, room: int | None, limit: int | None, out: Read) -> None:
    """Held-out rows: prompts where responses are graded, groups where rows bring answers that the algorithm reads."""
    recipe = checked.recipe
    source = recipe.data.eval
    assert source is not None
    if recipe.rewards or (checked.row is not None and checked.row.needs.sampler):
        found, about = prompts(source, chat, "data.eval", limit, conditioning=recipe.data.conditioning)
        out.held_prompts, repeated = distinct(found)
        out.reports["data.eval"] = replace(about, kept=len(out.held_prompts), duplicates=repeated)
    if not checked.reads_answers:
        return
    asked = _wanted(checked, source, room, "data.eval")
    if recipe.rewards and not _fits(source, asked):
        return  # These rows are there for what the policy says to them.
    found_groups, about = groups(source, chat, "data.eval", asked)
    # Equal rows would make an interval over them too narrow.
    seen = {(g.prompt.tokens, tuple(r.tokens for r in g.rollouts)): g for g in reversed(found_groups)}
    out.held = list(reversed(seen.values()))
    about = replace(about, kept=len(out.held), duplicates=len(found_groups) - len(out.held))
    out.reports["data.eval answers" if recipe.rewards else "data.eval"] = about
    if checked.scores and not _differ(out.held):
        raise DataError("data.eval: no two answers, or steps of one, differ in worth: nothing can be measured on it")


def _differ(held: Sequence[Group]) -> bool:
    """Whether held-out answers differ in worth: those of a prompt, single ones of several, or the steps of one."""
    worth = [{v.score for v in group.verdicts} for group in held]
    steps = any(len({label for _, label in v.steps}) > 1 for group in held for v in group.verdicts)
    single = all(len(group.verdicts) == 1 for group in held)
    return steps or any(len(scores) > 1 for scores in worth) or (single and len(set().union(*worth)) > 1)


def _fits(source: Source, asked: Wanted) -> bool:
    """Whether a source's rows bring the answers that the algorithm reads."""
    try:
        require(_columns(source, "data.eval"), asked, "data.eval")
    except DataError:
        return False
    return True


def _held_tokens(checked: Checked, chat: Chat, room: int | None, out: Read) -> set[tuple[int, ...]]:
    """The prompts of all held-out rows; where a text before the question says what the answer is worth, under either
    text.
    """
    held = {group.prompt.tokens for group in out.held} | {p.tokens for p in out.held_prompts}
    source, texts = checked.recipe.data.eval, checked.recipe.data.conditioning
    if source is None or texts is None:
        return held
    other = texts.model_copy(update={"good": texts.bad, "bad": texts.good})
    if out.held:
        asked = replace(_wanted(checked, source, room, "data.eval"), conditioning=other)
        held |= {group.prompt.tokens for group in groups(source, chat, "data.eval", asked)[0]}
    if out.held_prompts:
        held |= {p.tokens for p in prompts(source, chat, "data.eval", conditioning=other)[0]}
    return held


def _wanted(checked: Checked, source: Source, room: int | None, key: str) -> Wanted:
    """What the row asks of a source's answers, whose columns are known by now whatever it is."""
    return wanted(checked.recipe, checked.algorithm, source, room, _columns(source, key))


def _columns(source: Source, key: str) -> Sequence[str]:
    """The columns of a source's rows; of the hub only the rows tell."""
    return columns_of(source, key) or list(read_rows(source.model_copy(update={"limit": 1}), key)[0])

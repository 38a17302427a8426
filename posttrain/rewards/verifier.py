"""What grades: its protocol, how a recipe names it, and which columns it needs."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from posttrain.errors import RecipeError
from posttrain.rewards.pairwise import OTHER
from posttrain.types import Verdict

if TYPE_CHECKING:
    from posttrain.recipe import Reward

TRL_ARGUMENTS = ("prompts", "completions", "completion_ids")
OWN_ARGUMENTS = ("prompt_ids", "prompt_texts")
"""What a grader of a group may name beside TRL's: the prompt's token ids and its rendered text, as the policy read it,
once for each response. The ids are None where a response is not the prompt's tokens followed by what was said.
"""
TRL_HOOKS = ("trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True, slots=True)
class Named:
    """What a process that grades is told of a recipe's reward: plain data, so that it need not import recipes."""

    verifier: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    @classmethod
    def of(cls, reward: Reward) -> Named:
        return cls(reward.verifier, dict(reward.settings), reward.name)


class Verifier(Protocol):
    """What grades: a function, or an instance of a class whose constructor takes the recipe's settings.

    Keyword parameters are data set columns by name, `**columns` all of them; a parameter with a default may be absent.
    A method `prepare()`, where there is one, runs once in each worker before the clock of the first verdict starts. An
    attribute `memory_limit`, where there is one, is how many bytes its calls may add to what the worker holds then;
    None sets no limit, to `prepare()` neither. An attribute `version`, where there is one, is a text that changes
    whenever the verifier would grade something otherwise: it says that a verdict follows from settings, completion and
    columns alone, and may be kept. An attribute `alone` that is true says that its calls hold the cores, as a model's
    do: it is asked once all responses of a step are drawn, and not as soon as a group's are.
    """

    def __call__(self, completion: str, /, **columns: Any) -> float | Verdict: ...


@dataclass(frozen=True, slots=True)
class VerifierSignature:
    """What a verifier is called with. `group` verifiers (TRL's) see all completions of one prompt at once,
    `pair` verifiers two of them.
    """

    name: str
    kind: Literal["item", "group", "pair"]
    required: tuple[str, ...]
    """Columns without which it cannot be called."""
    optional: tuple[str, ...]
    """Columns it takes where the row has them."""
    takes_all: bool = False
    """It has `**columns`, so it gets every column of the row."""
    arguments: tuple[str, ...] = ()
    """Of what the Grader brings beside columns, what it takes; for an item verifier the name of its first parameter."""
    version: str | None = None
    """What it states of itself; None where its verdicts cannot be kept."""
    timeout: float | None = None
    """Seconds after which it gives up by itself: its setting of this name; None where it has none."""
    alone: bool = False
    """Its calls hold the cores, so that it is not asked while responses are drawn."""


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"there is: {', '.join(sorted(known)[:12]) or 'nothing'}"


def _import(path: str, key: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path != missing and not path.startswith(missing + "."):
            raise RecipeError([f"{key}: importing {path!r} failed: {error}; install it"]) from None
        parent, _, leaf = path.rpartition(".")
        known: list[str] = []
        if parent and parent != missing and not parent.startswith(missing + "."):
            known = [m.name for m in pkgutil.iter_modules(getattr(_import(parent, key), "__path__", ()))]
        hint = _near(leaf, known) if parent and known else "is it installed?"
        raise RecipeError([f"{key}: no module {missing!r}; {hint}"]) from None
    except Exception as error:
        raise RecipeError([f"{key}: importing {path!r} failed: {type(error).__name__}: {error}"]) from None


def load_verifier(reward: Reward | Named, key: str = "reward") -> Callable[..., Any]:
    """The verifier a recipe names, ready to be called; `key` is the reward's place in the recipe, for messages.

    With settings, what is named is called with them once: a class, or a function that makes a verifier.
    Raises RecipeError naming the key, the value and what was found instead.
    """
    target = _named(reward, key)
    if reward.settings or inspect.isclass(target):
        name = reward.verifier.rpartition(":")[2]
        _check_settings(target, reward, key)
        try:
            target = target(**reward.settings)
        except Exception as error:
            raise RecipeError([f"{key}.settings: {name} refused {reward.settings}: {error}"]) from None
        if not callable(target):
            raise RecipeError([f"{key}.verifier: {name} makes a {type(target).__name__}, which cannot be called"])
    return target


def _named(reward: Reward | Named, key: str) -> Callable[..., Any]:
    """The function or class that a recipe names."""
    path, colon, name = reward.verifier.partition(":")
    if not (path and colon and name.isidentifier()):
        raise RecipeError([f"{key}.verifier: {reward.verifier!r} is not written package.module:Name"])
    module = _import(path, f"{key}.verifier")
    target = getattr(module, name, None)
    if not callable(target):
        callables = [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n, None))]
        found = "has no such name" if target is None else f"is a {type(target).__name__}, which cannot be called"
        raise RecipeError([f"{key}.verifier: {name!r} in {path!r} {found}; {_near(name, callables)}"])
    found_there: Callable[..., Any] = target
    return found_there


def _timeout(reward: Reward | Named, key: str) -> float | None:
    """The setting `timeout`, or its default, of a class that has one."""
    target = _named(reward, key)
    parameter = inspect.signature(target).parameters.get("timeout") if inspect.isclass(target) else None
    value = reward.settings.get("timeout", parameter.default) if parameter else None
    return float(value) if isinstance(value, int | float) else None


def _check_settings(target: Callable[..., Any], reward: Reward | Named, key: str) -> None:
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    mistakes = [
        f"{key}.settings.{name}: unknown key (value {value!r}) of {reward.verifier}; {_near(name, list(parameters))}"
        for name, value in reward.settings.items()
        if name not in parameters
    ]
    if mistakes:
        raise RecipeError(mistakes)


def signature_of(reward: Reward | Named, key: str = "reward") -> VerifierSignature:
    """The columns a reward's verifier needs, read from its parameters. Raises RecipeError where it has no place for a
    completion."""
    verifier = load_verifier(reward, key)
    parameters = list(inspect.signature(verifier).parameters.values())
    version = getattr(verifier, "version", None)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    name = reward.name or reward.verifier.rpartition(":")[2]
    pair = len(named) > 1 and named[1].name == OTHER and named[1].kind is not named[1].KEYWORD_ONLY
    group = any(p.name in ("completions", "completion_ids") for p in named)
    if group:
        hooks = [p.name for p in named if p.name in TRL_HOOKS and p.default is p.empty]
        names = {p.name for p in named}
        arguments = [n for n in TRL_ARGUMENTS if takes_all or n in names]
        arguments += [n for n in OWN_ARGUMENTS if n in names] + hooks
        columns = [p for p in named if p.name not in TRL_ARGUMENTS + OWN_ARGUMENTS + TRL_HOOKS]
    elif pair:
        arguments, columns = [p.name for p in named[:2]], named[2:]
    elif named and named[0].kind is not named[0].KEYWORD_ONLY:
        arguments, columns = [named[0].name], named[1:]
    else:
        raise RecipeError([f"{key}.verifier: {reward.verifier} takes no completion as its first parameter"])
    return VerifierSignature(
        name=name,
        kind="group" if group else "pair" if pair else "item",
        required=tuple(p.name for p in columns if p.default is p.empty),
        optional=tuple(p.name for p in columns if p.default is not p.empty),
        takes_all=takes_all,
        arguments=tuple(arguments),
        version=version if isinstance(version, str) else None,
        timeout=_timeout(reward, key),
        alone=getattr(verifier, "alone", False) is True,
    )

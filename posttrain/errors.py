"""The errors a user is meant to read: each names what is wrong, its value, and the way out."""


class PosttrainError(Exception):
    """A stop with a reason. The command line prints it without a traceback and exits non-zero."""


class RecipeError(PosttrainError):
    """A recipe that cannot be run as written; carries every mistake that was found."""

    def __init__(self, mistakes: list[str], source: str = "recipe") -> None:
        self.mistakes = mistakes
        count = f"{len(mistakes)} mistake" + ("s" if len(mistakes) != 1 else "")
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {m}" for m in mistakes)]))


class DataError(PosttrainError):
    """A data set, row or column that is not what the recipe says."""


class ModelError(PosttrainError):
    """A checkpoint that is missing, incomplete, or of a kind that cannot be used exactly."""


class SyncError(PosttrainError):
    """Weights that did not reach the engine completely; the engine refuses to generate until they do."""


class ParityError(PosttrainError):
    """Engine and trainer disagree about log-probabilities beyond what their dtype explains."""


class GradingError(PosttrainError):
    """Too many verdicts failed for reasons that are not the policy's."""


class TrainingError(PosttrainError):
    """A non-finite loss or gradient, or a batch from which nothing can be learnt."""


class StoppedError(PosttrainError):
    """A run that was told to stop, and has saved what it had."""

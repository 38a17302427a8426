"""What a response's length adds to its score."""


def none(length: int, max_tokens: int) -> float:
    """0, whatever the length."""
    return 0.0


def overlong(length: int, max_tokens: int, overlong_buffer: float = 0.2, overlong_penalty: float = 1.0) -> float:
    """Soft overlong punishment (DAPO, 2503.14476, eq. 13): from 0 at the start of the last `overlong_buffer` share of
    `max_tokens` down to -`overlong_penalty` at its end.
    """
    buffer = overlong_buffer * max_tokens
    return -overlong_penalty * min(max(length - (max_tokens - buffer), 0.0) / buffer, 1.0)

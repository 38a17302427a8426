"""Answers of mathematics: where a text gives one, what it says, and when two of them are equal."""

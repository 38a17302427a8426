"""Checkpoints: where one is (`location`, no torch), how GGUF becomes one (`gguf`), and what is done with its tensors
(`checkpoint`).
"""

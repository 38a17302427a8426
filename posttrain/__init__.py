"""Post-training of language models from YAML recipes; the folder tree is the manual."""

__version__ = "0.1.0"

"""An algorithm is a row: `table` names its cells (no torch), `bound` makes functions of them, `credit` and `loss` run
them.
"""

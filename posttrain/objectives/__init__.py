"""Pure functions on tensors, in reading order: advantages, surrogates, corrections, penalties, reductions.

Shapes: `[G]` one entry per response of a group; `[N]` one per token, all sequences end to end; `segment [N]` says
which of the S sequences a token belongs to. No configuration, no process group, no state.
"""

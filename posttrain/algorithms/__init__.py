"""An algorithm is a row: `table` names its cells (no torch), `bound` makes them functions, `credit` and `loss` run them."""

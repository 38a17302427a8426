"""The rows of the table, one file for each kind of training. Imports no torch."""

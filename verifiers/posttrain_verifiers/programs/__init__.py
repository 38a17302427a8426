"""The parts of the code verifier: a completion's program, the data set's tests, and how the two meet."""

"""How fast it is, beside what one would otherwise use: one file a question, run by `python -m benchmarks`."""

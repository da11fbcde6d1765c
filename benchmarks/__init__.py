"""Speed, compared with the alternatives: one file a question, run by `python -m benchmarks`."""

"""Commands: a file each, with a click command called `command`. They import torch only when they run."""

COMMANDS = {
    "bench": "Measure how fast a run would train",
    "board": "Show all runs on one page: table, curves, sweeps",
    "cache": "List, verify or clear the compiled programs on disk",
    "compare": "Tell whether one setting is better than another",
    "completion": "Print the script that completes commands in a shell",
    "data": "Show how data would be read",
    "doctor": "Show whether this machine trains well",
    "eval": "Measure a run's model",
    "explain": "Show the compiled graphs of a run, or why it has none",
    "export": "Write a run's model as a file for other programs",
    "init": "Write a commented config to start from",
    "package": "Write a folder that predicts and serves a run's model",
    "plot": "Draw the curves of runs",
    "port": "Translate a training script of torch",
    "predict": "Predict other data with a run's model",
    "profile": "Show where the time of a step goes",
    "report": "Write a run as one HTML file",
    "runs": "List and compare runs",
    "sample": "Continue a text with a run's language model",
    "set": "Change settings of a run",
    "show": "Show a run's pipeline before training",
    "sweep": "Train many models at once",
    "train": "Train a model, or go on with a run",
}
"""Command -> its description. `pipe --help` imports none of them."""

"""Data sets: a Source has a length and gives the batch at any indices. One file a format."""

from pipeline.sources.bundled import digits, sklearn
from pipeline.sources.files import csv, idx, npz
from pipeline.sources.parts import Split, split
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.synthetic import random
from pipeline.sources.table import table
from pipeline.sources.tensors import Source, Tensors, source

__all__ = [
    "Prepared",
    "Source",
    "Split",
    "Task",
    "Tensors",
    "csv",
    "digits",
    "idx",
    "npz",
    "random",
    "sklearn",
    "source",
    "split",
    "table",
]

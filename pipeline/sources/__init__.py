"""Data sets: a Source has a length and gives the batch at any indices. One file a format."""

from pipeline.sources.bundled import digits
from pipeline.sources.dataset import Part, dataset
from pipeline.sources.files import csv, idx, npz
from pipeline.sources.huggingface import huggingface
from pipeline.sources.images import images
from pipeline.sources.parts import Split, split
from pipeline.sources.prepared import Prepared, Task
from pipeline.sources.synthetic import random
from pipeline.sources.tensors import Source, Tensors, source

__all__ = [
    "Part",
    "Prepared",
    "Source",
    "Split",
    "Task",
    "Tensors",
    "csv",
    "dataset",
    "digits",
    "huggingface",
    "idx",
    "images",
    "npz",
    "random",
    "source",
    "split",
]

"""Data sets: a Source has a length and gives the batch at any indices. One file a format."""

from pipeline.sources.bundled import digits
from pipeline.sources.files import csv, idx, npz
from pipeline.sources.synthetic import random
from pipeline.sources.tensors import Source, Tensors, source, split

__all__ = ["Source", "Tensors", "csv", "digits", "idx", "npz", "random", "source", "split"]

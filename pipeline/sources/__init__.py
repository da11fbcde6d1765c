"""Data sets: a Source has a length and gives the batch at any indices. One file a format."""

from pipeline.sources.arrays import arrays
from pipeline.sources.bundled import digits, sklearn
from pipeline.sources.dataset import Part, dataset
from pipeline.sources.files import idx, images_idx, npz
from pipeline.sources.from_user import given
from pipeline.sources.huggingface import huggingface
from pipeline.sources.images import images
from pipeline.sources.memmap import Mapped
from pipeline.sources.prepared import Prepared, Rows, Task
from pipeline.sources.split import Split, split
from pipeline.sources.synthetic import random
from pipeline.sources.table import table
from pipeline.sources.tensors import Source, Tensors, source
from pipeline.sources.text import decode, encode, text, tokens

__all__ = [
    "Mapped",
    "Part",
    "Prepared",
    "Rows",
    "Source",
    "Split",
    "Task",
    "Tensors",
    "arrays",
    "dataset",
    "decode",
    "digits",
    "encode",
    "given",
    "huggingface",
    "idx",
    "images",
    "images_idx",
    "npz",
    "random",
    "sklearn",
    "source",
    "split",
    "table",
    "text",
    "tokens",
]

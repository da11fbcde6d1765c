"""Data sets: a Source has a length and gives the batch at any indices. One file for each kind of data; file formats of
tables and arrays are in `formats`."""

from pipeline.sources.arrays import arrays
from pipeline.sources.bundled import digits, random, sklearn
from pipeline.sources.chat import chat
from pipeline.sources.columns import Readings
from pipeline.sources.dataset import Subset, dataset
from pipeline.sources.dialect import Dialect
from pipeline.sources.from_user import given
from pipeline.sources.huggingface import huggingface
from pipeline.sources.idx import idx, images_idx
from pipeline.sources.images import images
from pipeline.sources.memmap import Mapped
from pipeline.sources.prepared import Prepared, Rows, Task
from pipeline.sources.split import Split, split
from pipeline.sources.table import table
from pipeline.sources.tensors import Source, Tensors, source
from pipeline.sources.text import decode, encode, text, tokens

__all__ = [
    "Dialect",
    "Mapped",
    "Prepared",
    "Readings",
    "Rows",
    "Source",
    "Split",
    "Subset",
    "Task",
    "Tensors",
    "arrays",
    "chat",
    "dataset",
    "decode",
    "digits",
    "encode",
    "given",
    "huggingface",
    "idx",
    "images",
    "images_idx",
    "random",
    "sklearn",
    "source",
    "split",
    "table",
    "text",
    "tokens",
]

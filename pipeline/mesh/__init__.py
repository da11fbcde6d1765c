"""Mesh: the processes of a run, which samples and which rows of the weights each has, and how tensors go between them.

A step on a mesh is the same step: each process runs it on its part of the batch, and what is summed over samples is
summed over processes. The collectives are functions of tensors, so they are traced into the step's graph.

    W   processes        M   shards of each weight        rows   of a tensor's first dimension
"""

from pipeline.mesh.connect import claimed, make, processes, several
from pipeline.mesh.context import at, begun, gathered, here, norm_over_shards, over_shards, summed
from pipeline.mesh.shards import Mesh, Rows, Shard, spread

__all__ = [
    "Mesh",
    "Rows",
    "Shard",
    "at",
    "begun",
    "claimed",
    "gathered",
    "here",
    "make",
    "norm_over_shards",
    "over_shards",
    "processes",
    "several",
    "spread",
    "summed",
]

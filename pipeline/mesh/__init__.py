"""Mesh: the processes of a run, their rows of a batch, their shards of the weights, and sums between them.

Each process runs the same step on its rows of the batch. Sums over samples are then summed over processes. Collectives
are functions of tensors, traced into the step's graph.

    W   processes        M   shards of each weight        rows   of a tensor's first dimension
"""

from pipeline.mesh.connect import claimed, make, processes, several
from pipeline.mesh.context import at, draw_offset, gathered, here, norm_over_shards, over_shards, summed
from pipeline.mesh.shards import Mesh, Rows, Shard, broadcast

__all__ = ["Mesh", "Rows", "Shard", "at", "broadcast", "claimed", "draw_offset", "gathered", "here", "make",
           "norm_over_shards", "over_shards", "processes", "several", "summed"]  # fmt: skip

"""The training loop as the tutorial writes it: what a pipeline has to equal."""

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.draws import keyed


def train(module, batches, optimizer, *, criterion=F.cross_entropy, clip=None, scheduler=None, salt=0):
    """Each batch's loss, and `module` trained. Dropout comes from (seed 0, step, salt), as in a pipeline."""
    losses = []
    module.train()
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        with keyed(torch.tensor(0), torch.tensor(step), salt):
            outputs = module(batch["inputs"])
        loss = criterion(outputs, batch["targets"])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def accuracy(module, batches):
    """The share of right answers, in eval mode."""
    module.eval()
    with torch.no_grad():
        right = [(module(b["inputs"]).argmax(1) == b["targets"]).tolist() for b in batches]
    flat = [x for part in right for x in part]
    return sum(flat) / len(flat)

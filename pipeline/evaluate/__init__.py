"""Evaluate: metrics as sums over batches and one division at the end, so that unequal batches are exact.

A metric stage returns the sums of one batch, State adds them up, and `finish` turns them into named numbers. The same
stage serves training and evaluation. Counts are int64, other sums float64. To add a metric, add a function to a file
here, or a file, and for Python users a line below; the command finds it by a line in `cli/recipes/metric.py`.

Shapes: for classes, outputs (B, C, ...) or (B, ..., C) logits and targets (B, ...) int64, or floats like the outputs
(`dim` is the class dimension, if shapes are ambiguous); for values, outputs and targets of one shape, or (B, 1), (B,).
"""

from pipeline.evaluate.calibration import temperature as temperature
from pipeline.evaluate.classification import accuracy as accuracy
from pipeline.evaluate.classification import calibration_error as calibration_error
from pipeline.evaluate.classification import confusion as confusion
from pipeline.evaluate.classification import labels as labels
from pipeline.evaluate.classification import log_loss as log_loss
from pipeline.evaluate.classification import perplexity as perplexity
from pipeline.evaluate.classification import top_k as top_k
from pipeline.evaluate.host import HostMetric as HostMetric
from pipeline.evaluate.host import on_host as on_host
from pipeline.evaluate.metric import FLOAT as FLOAT
from pipeline.evaluate.metric import INT as INT
from pipeline.evaluate.metric import metric as metric
from pipeline.evaluate.metric import read as read
from pipeline.evaluate.per_class import balanced_accuracy as balanced_accuracy
from pipeline.evaluate.per_class import counts as counts
from pipeline.evaluate.per_class import f1 as f1
from pipeline.evaluate.ranked import average_precision as average_precision
from pipeline.evaluate.ranked import roc_auc as roc_auc
from pipeline.evaluate.ranked import threshold as threshold
from pipeline.evaluate.regression import mean_absolute_error as mean_absolute_error
from pipeline.evaluate.regression import mean_squared_error as mean_squared_error
from pipeline.evaluate.regression import pinball as pinball
from pipeline.evaluate.regression import poisson_deviance as poisson_deviance
from pipeline.evaluate.regression import r2 as r2
from pipeline.evaluate.regression import root_mean_squared_error as root_mean_squared_error
from pipeline.evaluate.training import gradient_norm as gradient_norm
from pipeline.evaluate.training import learning_rate as learning_rate
from pipeline.evaluate.training import noise_scale as noise_scale
from pipeline.evaluate.training import update_ratio as update_ratio

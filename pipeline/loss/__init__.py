"""Loss: a scalar to minimise. Each loss writes its mean over the batch and its weight, the count averaged over.

With weights, means over unequal batches are exact: an epoch's loss is sum(loss * weight) / sum(weight). To write your
own, decorate a plain function with `@stage(writes="loss")`, or pass it to `loss.function(f)`. To add one here, add a
file and a line below.
"""

from pipeline.loss.cross_entropy import cross_entropy as cross_entropy
from pipeline.loss.elementwise import binary_cross_entropy as binary_cross_entropy
from pipeline.loss.elementwise import huber as huber
from pipeline.loss.elementwise import l1 as l1
from pipeline.loss.elementwise import mse as mse
from pipeline.loss.elementwise import poisson as poisson
from pipeline.loss.elementwise import quantile as quantile
from pipeline.loss.from_function import function as function
from pipeline.loss.from_function import weight as weight
from pipeline.loss.joint import WRITES as WRITES
from pipeline.loss.joint import Loss as Loss
from pipeline.loss.joint import mean_chances as mean_chances
from pipeline.loss.joint import mean_outputs as mean_outputs
from pipeline.loss.joint import mean_probabilities as mean_probabilities
from pipeline.loss.joint import mean_rates as mean_rates
from pipeline.loss.joint import votes as votes
from pipeline.loss.members import of_members as of_members

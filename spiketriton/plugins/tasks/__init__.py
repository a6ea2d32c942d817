"""What is learnt: `task_of(recipe.loss)`, classification or a plugin's, with targets, their loss and a score.

What of the currents is the answer is said in one place, `reading.py`.
"""

from spiketriton.plugins.tasks.batches import Batch, answers, has_time, image_dim
from spiketriton.plugins.tasks.classification import Classification, build_loss, task_of
from spiketriton.plugins.tasks.reading import Reading
from spiketriton.plugins.tasks.task import Loss, Score, Task

__all__ = [
    "Batch",
    "Classification",
    "Loss",
    "Reading",
    "Score",
    "Task",
    "answers",
    "build_loss",
    "has_time",
    "image_dim",
    "task_of",
]

"""What is learnt: `task_of(recipe.loss)`, classification or a plugin's, with targets, their loss and a score.

What of the currents is the answer is said in one place, `reading.py`.
"""

from spiketriton.plugins.tasks.classification import Classification, build_loss, task_of
from spiketriton.plugins.tasks.reading import Reading
from spiketriton.plugins.tasks.task import Batch, Loss, Score, Task

__all__ = ["Batch", "Classification", "Loss", "Reading", "Score", "Task", "build_loss", "task_of"]

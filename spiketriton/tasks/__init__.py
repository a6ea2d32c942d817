"""What is learnt: what targets look like, the loss of answers to them, and the score by which nets are compared.

`task_of(recipe.loss)` is the task of a recipe: classification.py, or a subclass of `Task` by a plugin.
"""

from spiketriton.tasks.classification import Classification, build_loss, task_of
from spiketriton.tasks.task import Batch, Loss, Score, Task

__all__ = ["Batch", "Classification", "Loss", "Score", "Task", "build_loss", "task_of"]

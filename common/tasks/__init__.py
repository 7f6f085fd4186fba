"""What outputs mean: for each task the loss of an example, its predictions, and what its targets must be."""

from nufed.common.tasks.own import OwnTask
from nufed.common.tasks.registry import TASKS, find_entry, find_task, is_plain
from nufed.common.tasks.task import Task

__all__ = ["TASKS", "OwnTask", "Task", "find_entry", "find_task", "is_plain"]

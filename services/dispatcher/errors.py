"""What a caller of the dispatcher may have to handle."""

from shared.problems import Conflict, NotFound


class TaskUnknown(NotFound):
    type = "task-unknown"
    title = "There is no such task."


class TaskFinished(Conflict):
    type = "task-finished"
    title = "The task has ended already"


class TaskUnfinished(Conflict):
    type = "task-unfinished"
    title = "The task has not ended yet"

"""What a caller of the dispatcher may have to handle."""

from shared.problems import Conflict, Forbidden, NotFound


class TaskUnknown(NotFound):
    type = "task-unknown"
    title = "There is no such task."


class GroupUnknown(NotFound):
    type = "task-group-unknown"


class ScheduleUnknown(NotFound):
    type = "task-schedule-unknown"


class WorkerUnknown(NotFound):
    type = "worker-unknown"


class ScheduleExists(Conflict):
    type = "task-schedule-exists"
    title = "There is a schedule of this name already"


class ScheduleBuiltIn(Conflict):
    type = "task-schedule-built-in"
    title = "This schedule follows the settings"


class LinkExpired(Forbidden):
    type = "link-expired"
    title = "This link is not valid any more. Ask for a new one."


class LeaseUnknown(NotFound):
    type = "lease-unknown"
    title = "There is no such lease of yours."


class LeaseExists(Conflict):
    type = "lease-exists"
    title = "This id is used already"


class ResourcesBusy(Conflict):
    """`resources` names the busy ones among those that were asked for."""

    type = "resources-busy"
    title = "Some of the resources are held by somebody else"


class LeaseLost(Conflict):
    type = "lease-lost"
    title = "You do not hold this lease any more."

"""What a caller of user_tasks may have to handle."""

from shared.problems import Conflict, Forbidden, NotFound


class StatusUnknown(NotFound):
    type = "user-task-unknown"


class PlacedElsewhere(Conflict):
    type = "user-task-placed-elsewhere"


class ArtifactUnknown(NotFound):
    type = "artifact-unknown"


class LinkExpired(Forbidden):
    type = "link-expired"
    title = "This link is not valid any more. Ask for a new one."


class WatcherUnknown(NotFound):
    type = "watcher-unknown"


class TooManyWatchers(Conflict):
    type = "too-many-watchers"
    title = "This task has as many watchers as a task may have."

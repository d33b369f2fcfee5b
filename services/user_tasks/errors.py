"""What a caller of user_tasks may have to handle."""

from shared.problems import Forbidden, NotFound


class StatusUnknown(NotFound):
    type = "user-task-unknown"


class ArtifactUnknown(NotFound):
    type = "artifact-unknown"


class LinkExpired(Forbidden):
    type = "link-expired"
    title = "This link is not valid any more. Ask for a new one."

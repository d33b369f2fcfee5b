"""What a caller of libraries may have to handle."""

from typing import Any

from shared.problems import BadInput, Conflict, NotFound


class LibraryUnknown(NotFound):
    type = "library-unknown"


class BlockUnknown(NotFound):
    type = "block-unknown"


class CollectionUnknown(NotFound):
    type = "collection-unknown"


class AssetUnknown(NotFound):
    type = "asset-unknown"


class LibraryTaskUnknown(NotFound):
    type = "library-task-unknown"


class RuleBroken(BadInput):
    """A rule given as one text: the compatible body is an array of it. contract: libraries §2.4"""

    type, title = "rule-broken", "A rule of the library does not allow this"

    def __init__(self, detail: str | None = None, **kwargs: Any) -> None:
        super().__init__(detail, body=[detail or self.title], **kwargs)


class BlockExists(RuleBroken):
    type = "block-exists"


class LimitReached(RuleBroken):
    type = "block-limit-reached"


class ClipboardUnknown(NotFound):
    type = "clipboard-unknown"


class ClipboardEmpty(BadInput):
    """Nothing was copied."""

    type, title = "clipboard-empty", "The clipboard is empty"

    def __init__(self) -> None:
        super().__init__("Copy something first: your clipboard is empty.")


class FieldRefused(BadInput):
    """A rule about one field: the compatible body is an object with plain text, or a list."""

    type = "field-refused"

    def __init__(self, field: str, message: str | list[str]) -> None:
        text = message if isinstance(message, str) else message[0]
        super().__init__(text, fields={field: message})


class PositionChanged(Conflict):
    type, title = "position-changed", "Another child is at this position now"


class VersionConflict(Conflict):
    type, title = "version-conflict", "Somebody else has changed this meanwhile"


class NotDeleted(Conflict):
    type, title = "not-deleted", "This is not deleted"


class Superseded(Conflict):
    type = "superseded"
    title = "Other work has changed the library since this one lost its lock."


class VersionUnknown(NotFound):
    type = "library-version-unknown"


class ContentOverwrite(BadInput):
    type, title = "content-overwrite", "A unit would replace another of the same entity"
    code = "PLP0023"


class LastVersion(BadInput):
    type, title = "last-library-version", "A library keeps at least one version"


class VersionProtected(Conflict):
    type, title = "library-version-protected", "Something refers to this version"
    code = "PLP0029"


class TempFileUnknown(BadInput):
    type, title = "temp-file-unknown", "There is no such temporary file of yours."


class TempFileTaken(Conflict):
    type, title = "temp-file-taken", "Another task owns this temporary file."


class ExportRefused(Conflict):
    type, title = "export-refused", "There is something at this place already"


class ExportUnknown(NotFound):
    type = "export-unknown"


class ExportRunning(Conflict):
    type, title = "export-running", "The export is being written; cancel its task first."


class ContentUnknown(NotFound):
    type = "content-unknown"


class GrantUnknown(NotFound):
    type = "grant-unknown"


class PersonUnknown(NotFound):
    type, title = "person-unknown", "Nobody of this name is known."


class GroupUnknown(NotFound):
    type, title = "group-unknown", "There is no such group."


class RoleAssignmentUnknown(NotFound):
    type, title = "role-assignment-unknown", "There is no such assignment of a role."


class LastAdmin(RuleBroken):
    type = "last-library-admin"
    title = "Cannot change or remove the access level for the only admin."


class GroupInUse(Conflict):
    type, title = "group-in-use", "Grants or roles name this group; take them away first."

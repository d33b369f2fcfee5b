"""A private folder for one run. contract: dispatcher DI-35"""

import shutil
import tempfile
from pathlib import Path


class TaskFolder:
    """Made when it is first asked for, readable by this user only, removed when the run ends."""

    def __init__(self) -> None:
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix="lyceum-task-"))
        return self._path

    def remove(self) -> None:
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None

"""Which file name in an archive stands for which code. contract: content_core §4.6, §4.12"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field


@dataclass(slots=True)
class Names:
    """Which file name stands for which code: the code itself wherever it can be.

    Names that a file system may take for one another are kept apart, and none looks like what
    macOS leaves in archives. Only their hashes are remembered; two that met by chance would merely
    cost one of them its plain name.
    """

    _used: set[int] = field(default_factory=set)

    def take(self, folder: str, code: str) -> str:
        plain = code.strip(".") and "/" not in code and not code.startswith("._")
        if plain and self._free(folder, code):
            return code
        for digest_size in range(3, 21):
            digest = hashlib.blake2b(code.encode(), digest_size=digest_size).hexdigest()
            name = f"{slug(code)}_{digest}"
            if self._free(folder, name):
                return name
        raise ValueError(f"No free name for {code!r}.")

    def _free(self, folder: str, name: str) -> bool:
        """Both the file `name.toml` and the folder `name` must be free, and are taken then."""
        folded = unicodedata.normalize("NFC", name).lower()
        wanted = {hash((folder, folded)), hash((folder, f"{folded}.toml"))}
        if wanted & self._used:
            return False
        self._used |= wanted
        return True


def slug(text: str) -> str:
    """Lower case words with hyphens between them, in any script. contract: content_core §4.6"""
    kept = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKC", text).lower())
    return re.sub(r"[-\s]+", "-", kept).strip("-_")

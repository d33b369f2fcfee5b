"""Chapters about archives: downloaded and compared, restored under another key, the same again."""

import hashlib
import zipfile
from pathlib import Path

from deploy.demo.content import Content, whole
from deploy.demo.service import LIBRARIES, DemoFailed, Service
from deploy.demo.terminal import Story
from services.libraries.archive_reading import read_archive

PACKAGE = "package.toml"


def verify(service: Service, story: Story, folder: Path, library: str, wanted: Content) -> Path:
    """Compare an archive with what was imported, byte for byte; where it is."""
    story.chapter("Download the archive and compare it with what was imported")
    target = download(service, folder, library)
    with read_archive(target) as contents:
        found = {
            entity.key: {
                media.path: whole(media.data)
                for version in entity.versions
                if version.version_num == entity.published_num
                for media in version.media
            }
            for entity in contents.entities
            if entity.container_type is None
        }
    different = [
        ref
        for ref, (olx, files) in wanted.items()
        if found.get(ref) != {"block.xml": olx.encode(), **files}
    ]
    if different or len(found) != len(wanted):
        raise DemoFailed(f"{len(different)} components differ, the first one: {different[:1]}")
    count = sum(len(files) for _, files in wanted.values())
    story.say(f"{len(found)} components and {count} files are byte for byte what was imported")
    story.keep("archive compared", f"{len(found)} components, {count} files equal")
    return target


def download(service: Service, folder: Path, library: str) -> Path:
    """Back a library up and fetch its archive."""
    status = service.follow(service.start_backup(library), f"backup of {library}")
    artifact = next(found for found in status["artifacts"] if found["name"] == "Output")
    target = folder / str(artifact["file_name"])
    with service.http.stream("GET", artifact["file"]) as answer, target.open("wb") as file:
        for piece in answer.iter_bytes():
            file.write(piece)
    if target.stat().st_size != artifact["size"]:
        raise DemoFailed("The download has another size than the archive.")
    return target


def restore(service: Service, story: Story, folder: Path, archive: Path, slug: str) -> None:
    """Make another library of an archive, and show that its own archive says the same."""
    story.chapter("Restore the archive under another key")
    with archive.open("rb") as file:
        files = {"file": (archive.name, file, "application/zip")}
        task = service.call("POST", f"{LIBRARIES}/restore/", files=files)["task_id"]
    status = service.follow(task, f"restore of {archive.name}")
    if status["base_state"] != "Succeeded":
        raise DemoFailed(f"The restore ended {status['state']}: {status['error']}")
    answer = service.call("GET", f"{LIBRARIES}/restore/", params={"task_id": task})
    package = answer["result"]["learning_package_id"]
    library = service.create_library(slug, "Restored", learning_package=package)
    again = contents_of(download(service, folder, library))
    if again != contents_of(archive):
        raise DemoFailed("The archive of the restored library differs.")
    story.say(f"{library}: containers, collections and versions as before, {len(again)} files")
    story.keep("restored under another key", f"{len(again)} archived files equal")


def contents_of(archive: Path) -> dict[str, str]:
    """The hash of each file; the package's own file tells of its title and times."""
    with zipfile.ZipFile(archive) as opened:
        return {
            name: hashlib.sha256(opened.read(name)).hexdigest()
            for name in opened.namelist()
            if name != PACKAGE
        }

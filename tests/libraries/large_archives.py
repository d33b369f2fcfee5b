"""Backup archives of many components."""


def many(count: int) -> dict[str, bytes]:
    """The files of an archive of published components, each with a text and a file."""
    created = "created = 2026-03-01T09:30:00Z\n"
    files = {
        "package.toml": (
            f"[meta]\nformat_version = 1\ncreated_at = 2026-03-01T09:30:00Z\n[learning_package]\n"
            f'title = "Many"\nkey = "lib:J:many"\ndescription = ""\n{created}'
        ).encode()
    }
    for number in range(count):
        stem = f"entities/xblock.v1/html/n{number}"
        files[f"{stem}.toml"] = (
            f'[entity]\ncan_stand_alone = true\nkey = "xblock.v1:html:n{number}"\n{created}'
            "[entity.draft]\nversion_num = 1\n[entity.published]\nversion_num = 1\n"
            f'[[version]]\ntitle = "{number}"\nversion_num = 1\n'
        ).encode()
        files[f"{stem}/component_versions/v1/block.xml"] = f"<html>{number}</html>".encode()
        files[f"{stem}/component_versions/v1/static/a.txt"] = str(number).encode()
    return files

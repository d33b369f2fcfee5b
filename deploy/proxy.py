"""`python -m deploy.proxy`: the reverse proxy's configuration, made from the one path table."""

import sys
from pathlib import Path

from deploy import paths

TARGET = Path(__file__).with_name("proxy.conf")
# What the services say to each other, and what only operators read, has no way in.
INNER = ("notes", "metrics")

HEAD = """\
# Made from deploy/paths.toml by `python -m deploy.proxy`. Do not edit.
server {
    listen 80;
    client_max_body_size 1g;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_http_version 1.1;
    proxy_read_timeout 330s;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    # A service that was replaced gets a new address; ask for it again after a while.
    resolver 127.0.0.11 valid=10s;

    location = / { return 302 /libraries/docs; }
    location = /healthz { default_type application/json; return 200 '{"status":"ok"}'; }
    location / { default_type application/json; return 404 '{"detail":"Not found."}'; }
"""


def render() -> str:
    """The whole configuration."""
    lines = [HEAD]
    for service in paths.prefixes():
        lines += [f"    location = /{service}/{name} {{ return 404; }}\n" for name in INNER]
    for prefix, service in sorted(paths.by_prefix()):
        lines.append(
            f"\n    location {prefix} {{\n"
            f"        set $upstream_{service} http://{service}:8000;\n"
            f"        proxy_pass $upstream_{service};\n"
            "    }\n"
        )
    return "".join([*lines, "}\n"])


def main() -> int:
    """Write the file; with --check only say whether it is current."""
    if "--check" in sys.argv:
        if TARGET.exists() and TARGET.read_text() == render():
            return 0
        print("deploy/proxy.conf is not current: run `python -m deploy.proxy`", file=sys.stderr)
        return 1
    TARGET.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())

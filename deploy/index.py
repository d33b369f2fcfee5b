"""The page at `/`: what runs here and where its documentation is."""

from collections.abc import Mapping
from html import escape

from fastapi import FastAPI

STYLE = """
:root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif; }
body { max-width: 44rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin-bottom: 0; }
ul { list-style: none; padding: 0; }
li { border: 1px solid #8886; border-radius: .6rem; padding: .8rem 1rem; margin: .8rem 0; }
li b { font-size: 1.1rem; }
nav a { margin-right: 1.2rem; display: inline-block; padding: .2rem 0; }
code { background: #8882; padding: .1rem .3rem; border-radius: .3rem; }
"""


def page(services: Mapping[str, FastAPI]) -> str:
    """Self-contained HTML, readable on a phone."""
    items = "".join(_item(name, app) for name, app in services.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Lyceum</title><style>{STYLE}</style>"
        "<h1>Lyceum</h1><p>The back end of a course platform. Five services, one origin.</p>"
        '<p><a href="/tasks/">My tasks</a>: what is done for you in the background, live.</p>'
        f"<ul>{items}</ul>"
        "<p>To try the routes, press <i>Authorize</i> in the documentation and give "
        "<code>JWT</code>, a space, and the token that <code>make token user=ada</code> prints."
        "</p></html>"
    )


def _item(name: str, app: FastAPI) -> str:
    links = {
        "Documentation": "docs",
        "OpenAPI": "openapi.json",
        "Ready?": "readyz",
        "Metrics": "metrics",
    }
    anchors = "".join(f'<a href="/{name}/{path}">{text}</a>' for text, path in links.items())
    return f"<li><b>{escape(app.title)}</b><br>{escape(app.description)}<nav>{anchors}</nav></li>"

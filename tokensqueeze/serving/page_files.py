"""The files of the page at `/`, which ship with the package and lead nowhere else."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
# Scripts and styles from these files alone, requests to this server alone, and no frame around the page.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class PageFile:
    content: bytes
    content_type: str


@cache
def page_files() -> dict[str, PageFile]:
    """Return the files by the path they are served at."""
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _TYPES)
    return {
        "/" if path.name == "index.html" else f"/{path.name}": PageFile(path.read_bytes(), _TYPES[path.suffix])
        for path in files
    }

"""Downloads a file from a URL once."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path

from src.errors import ParleyError
from src.files import ROW_SUFFIXES
from src.models.sources import first_line
from src.writing import whole_file

TIMEOUT_SECONDS = 30.0
ADVICE = "make room there, or set cache_dir to another place"


def is_url(path: str) -> bool:
    """Whether this is an http(s) URL."""
    return urllib.parse.urlsplit(path).scheme in ("http", "https")


def downloaded(url: str, cache_dir: Path) -> Path:
    """The file at a URL, from the cache or downloaded now.

    Args:
        url: An http or https URL of a table; it is taken for CSV unless its suffix says otherwise.
        cache_dir: The cache's directory; the file is stored in its `downloads/`. Delete it there to download it again.

    Raises:
        ParleyError: The download fails, or gives a web page.
    """
    name = Path(urllib.parse.urlsplit(url).path).name
    if Path(name).suffix.lower() not in ROW_SUFFIXES:
        name = f"{name or 'table'}.csv"
    file = cache_dir / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if file.exists():
        return file
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            if response.headers.get_content_type() == "text/html":
                raise ParleyError(f"{url} is a web page, not a table; give the address of the raw file.")
            data = response.read()
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or first_line(error)
        raise ParleyError(f"{url} cannot be downloaded ({reason}); check the address, or give a local file.") from error
    with whole_file(file, "wb", ADVICE) as stream:
        stream.write(data)
    return file

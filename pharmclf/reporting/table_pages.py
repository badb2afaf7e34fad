"""Pages around a table: that of a sweep, and the index of a storage. One file each, without external references.

The table is sorted by a small script; without it the page shows the same rows in their first order.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2

from pharmclf.core.units import format_count, format_duration, format_price, format_size
from pharmclf.reporting import text_format

_TEMPLATES = resources.files("pharmclf.reporting") / "templates"


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package; all text is escaped, and the page runs no script but that of its table."""
    return page_environment().get_template(template).render(**load_script("sortable.js"), **values)


def load_script(*names: str) -> dict[str, str]:
    """The values `script`, the joined text of some templates, and `script_hash`, as which a page's policy allows it."""
    script = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return {"script": script, "script_hash": f"sha256-{digest}"}


def page_environment(**options: Any) -> jinja2.Environment:
    """Templates in which all text is escaped, with the filters that all pages use; more options are those of Jinja2."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pharmclf.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= {
        "percent": text_format.format_percent,
        "interval": text_format.format_interval,
        "count": format_count,
        "duration": format_duration,
        "size": format_size,
        "price": format_price,
    }
    return environment

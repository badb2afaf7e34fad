"""Answer for images over HTTP with saved models, on Ray Serve: a page for people, JSON for programs.

pharmclf serve --model runs/NAME                             at http://127.0.0.1:8000/, with a new token
pharmclf serve --model tablets=runs/a boxes=s3://bucket/b    several models; the first answers where none is named
pharmclf serve --model best/ --host 0.0.0.0 --replicas 1-4   for other machines, with more processes under load

POST /predict with the header Authorization: Bearer TOKEN takes image files as a form, as JSON {"images": [base64]}, or
one as the body, and answers with label, confidence, possible classes, and abstain: a person must look. ?model=NAME
chooses a model. GET / is a page where a photo is dropped or taken with the phone's camera. Also /models, /metrics
(Prometheus), /healthz, /readyz and /openapi.json.
A model whose files change at its location is loaded, verified and tried, then replaces the earlier one without a lost
request; a damaged one is refused, and the earlier one continues to answer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from pharmclf.commands.parser import OptionsParser
from pharmclf.core.console import print_line, show_loading
from pharmclf.core.errors import ConfigError
from pharmclf.serving.options import ServeOptions

PARSER = OptionsParser("serve", __doc__, ServeOptions)
_MODULES = ("fastapi", "uvicorn", "python_multipart")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, serve until a signal -> the exit code."""
    options = PARSER.parse(arguments)
    if missing := [module for module in _MODULES if importlib.util.find_spec(module) is None]:
        raise ConfigError(
            f"serve: {', '.join(missing)} not installed, expected for a server. "
            "Install what it needs: pip install 'pharmclf[serve]'"
        )
    with show_loading():  # after the flags are parsed, so that --help answers at once
        from pharmclf.serving.server import serve_models

    return serve_models(options, print_line)

"""HTML pages that need nothing else, of one look: templates may extend ``page.html``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2


def render(package: str, template: str, *, filters: dict[str, Callable[..., str]], **values: Any) -> str:
    """A template beside the modules of ``package`` as HTML text; a value that it asks for and lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(of, "") for of in (package, "samsans.metrics")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)

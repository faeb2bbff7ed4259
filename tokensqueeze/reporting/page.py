"""The templates of the pages: everything is escaped unless a chart drew it, and an unknown name is an error."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from tokensqueeze.reporting import wording


def page_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tokensqueeze.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("counted", "duration", "number", "percent", "plain", "signed_tokens"):
        environment.filters[name] = getattr(wording, name)
    return environment

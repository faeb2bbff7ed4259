"""What a method is."""

from dataclasses import dataclass

from tokensqueeze.config import ObjectiveSettings, RewriterSettings, SelectorSettings


@dataclass(frozen=True)
class Method:
    name: str
    summary: str
    selector: SelectorSettings
    rewriter: RewriterSettings
    objective: ObjectiveSettings

"""The simplest baseline: fine-tune on the shortest correct trace of every problem."""

from tokensqueeze.config import SFT, NoRewrite, Shortest
from tokensqueeze.methods.method import Method

METHOD = Method(
    name="shortest_sft",
    summary="Baseline: fine-tune on the shortest correct trace of every problem.",
    selector=Shortest(),
    rewriter=NoRewrite(),
    objective=SFT(),
)

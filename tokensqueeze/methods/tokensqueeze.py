"""The paper, to the letter: adaptive depth, the KL bound, DPO with a length margin and SFT (arXiv 2511.13223)."""

from tokensqueeze.config import AdaptiveDepth, DPOLengthSFT, KLBound
from tokensqueeze.methods.method import Method

METHOD = Method(
    name="tokensqueeze",
    summary="The paper, to the letter: adaptive depth, KL-bounded rewriting, DPO-L + SFT.",
    selector=AdaptiveDepth(),
    rewriter=KLBound(),
    objective=DPOLengthSFT(),
)

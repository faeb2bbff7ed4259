"""The paper with its flaw mended: a rewriting is kept only if the model takes it dependably, not once by luck."""

from tokensqueeze.config import AdaptiveDepth, DPOLengthSFT, Reliable
from tokensqueeze.methods.method import Method

METHOD = Method(
    name="tokensqueeze_reliable",
    summary="The paper with reliable rewriting: a shortcut is kept only if the model takes it dependably.",
    selector=AdaptiveDepth(),
    rewriter=Reliable(),
    objective=DPOLengthSFT(),
)

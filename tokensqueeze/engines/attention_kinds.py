"""Whether every layer of a model sees the whole context, which masks and caches of our own take for granted."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def partial_attention(config: "PreTrainedConfig") -> list[str]:
    """Return the kinds of layers that see less than the whole context, such as `sliding_attention`; mostly none."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        # Mistral, Mixtral and Phi-3 name no layer types: a window in their configuration is that of every layer.
        window = getattr(text, "sliding_window", None)
        kinds = ["full_attention" if window is None or window >= text.max_position_embeddings else "sliding_attention"]
    return sorted(set(kinds) - {"full_attention"})

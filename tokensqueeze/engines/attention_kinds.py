"""What a model's attention may not do where masks, caches and attention of our own serve it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_UNSERVED_OPTIONS = ("position_bias", "softcap", "s_aux")


def partial_attention(config: "PreTrainedConfig") -> list[str]:
    """Return the kinds of layers that see less than the whole context, such as `sliding_attention`; mostly none."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        # Mistral, Mixtral and Phi-3 name no layer types: a window in their configuration is that of every layer.
        window = getattr(text, "sliding_window", None)
        kinds = ["full_attention" if window is None or window >= text.max_position_embeddings else "sliding_attention"]
    return sorted(set(kinds) - {"full_attention"})


def positions_depend_on_batch(config: "PreTrainedConfig") -> bool:
    """Whether a token's rotary position depends on what shares its forward pass, as longrope's does (Phi-3, Phi-4-mini).

    transformers rotates a whole pass by the frequencies for short or for long texts, whichever its largest position asks for.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # Parameters of the whole model, or by layer type.
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, Mapping)]
    return any(_switches_frequencies(text, kind) for kind in kinds)


def _switches_frequencies(text: "PreTrainedConfig", rope: Mapping[str, Any]) -> bool:
    longest = text.max_position_embeddings
    short = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None) or longest
    return rope.get("rope_type", rope.get("type")) == "longrope" and longest > short


def unserved_options(options: Mapping[str, Any]) -> list[str]:
    """Return which of the options that a layer gives its attention would change the scores in ways that ours does not."""
    return [name for name in _UNSERVED_OPTIONS if options.get(name) is not None]

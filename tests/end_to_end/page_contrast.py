"""The contrast of every word on a page with what is behind it (WCAG 2.2, 1.4.3)."""

import re

from tests.end_to_end.served_page import Page


def contrasts(page: Page) -> dict[str, float]:
    """Return the contrast of each visible text; controls that are off are exempt."""
    return {text: _contrast(ink, ground) for text, ink, ground in page.run(_COLOURS)}


_COLOURS = """
const opaque = (colour) => !/, 0\\)$|transparent/.test(colour);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (opaque(colour)) return colour;
  }
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
  const inactive = parent.closest("[aria-disabled=true], script, noscript, template");
  if (words && !inactive && parent.getClientRects().length) found.push([words, getComputedStyle(parent).color, ground(parent)]);
}
return found;
"""


def _contrast(ink: str, ground: str) -> float:
    light, dark = sorted((_luminance(ink), _luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

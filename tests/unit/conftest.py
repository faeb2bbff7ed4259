"""How Hypothesis looks for examples."""

from hypothesis import settings

# A busy machine is no failure, and the same examples every time make a failure everybody's.
settings.register_profile("tokensqueeze", deadline=None, derandomize=True)
settings.load_profile("tokensqueeze")

"""Entry points for `ray job submit`: each a few lines in front of the package."""

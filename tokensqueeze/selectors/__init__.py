"""Which correct traces are worth learning from, and against which they are paired."""

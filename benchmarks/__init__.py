"""Questions with measured answers: `python -m benchmarks.NAME` prints the question, a table, and one JSON object last."""

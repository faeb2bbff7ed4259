"""The stages on Ray Data: each reads shard k of its input tables, calls plain functions, writes part k of its own."""

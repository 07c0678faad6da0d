"""The use cases: who may do what, and how much of it, over ports only."""

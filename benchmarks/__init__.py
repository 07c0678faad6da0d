"""Benchmarks of Cellblock against what people use today: `make bench`, described in docs/performance.md."""

"""Cells: what a kernel is confined by, how it is started, proved, limited and ended."""

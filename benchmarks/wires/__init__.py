"""Ways to a kernel, each with the one verb that is measured: execute."""

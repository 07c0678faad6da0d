"""Runs untrusted code in Jupyter kernels, each in a firejail cell of its own."""

"""Hypothesis without its own deadline: machines that run tests are busy ones."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

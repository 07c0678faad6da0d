"""What all nouns are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A value that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Frozen(BaseModel):
    """A value that refuses unknown fields and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

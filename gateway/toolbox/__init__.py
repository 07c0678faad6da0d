"""The tools for agents: what goes in and comes out, and what does it, over services only."""

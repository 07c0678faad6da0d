"""An agent whose code asks the model: a cell goes through documents and calls two tools of this program's.

Run it against a gateway: CELLBLOCK_URL=... CELLBLOCK_KEY=... python callback_agent.py
"""

from __future__ import annotations

import asyncio
import os

from gateway.client import Client

DOCUMENTS = {
    "monday": "The pump ran dry twice. Ada changed the filter.",
    "tuesday": "All quiet. Two visitors.",
    "wednesday": "The pump ran dry again, and the spare one too.",
}

# What a model would write: a loop over more text than it could read. Only what is printed goes back to it.
CODE = """
import asyncio
import cellblock

async def look(name):
    text = await cellblock.acall("read", name=name)
    return name, await cellblock.acall("model", question="Is something broken?", text=text)

names = cellblock.call("titles")
found = dict(await asyncio.gather(*map(look, names)))
print(*(f"{name}: {answer}" for name, answer in sorted(found.items())), sep="\\n")
"""


class Library:
    """The documents that the code may read, and a count of how often it did."""

    def __init__(self) -> None:
        self.read_so_far = 0

    def titles(self) -> list[str]:
        """Return the names of the documents."""
        return sorted(DOCUMENTS)

    async def read(self, name: str) -> str:
        """Return a document. The name comes from untrusted code: it is looked up, and never a path."""
        self.read_so_far += 1
        return DOCUMENTS[name]


async def model(question: str, text: str) -> str:
    """Answer a question about a text; a scripted stand-in for a language model."""
    await asyncio.sleep(0.2)
    return "yes" if "broken" in question and "dry" in text else "no"


async def main() -> None:
    """Run the agent's code and print what came of it."""
    library = Library()
    tools = {"titles": library.titles, "read": library.read, "model": model}
    async with Client(os.environ["CELLBLOCK_URL"], os.environ["CELLBLOCK_KEY"]) as client:
        view = await client.executions.run(CODE, tools=tools, timeout_s=30)
    print(f"{view.status}, {library.read_so_far} documents read")
    if view.result is not None:
        print(view.result.stdout or view.result.clean, end="")


if __name__ == "__main__":
    asyncio.run(main())

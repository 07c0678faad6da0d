"""Run code, or a whole agent, with smolagents on a gateway. tests/agents.py gives its orders."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from cellblock_executor import CellblockExecutor
from smolagents import ChatMessage, CodeAgent, Model, tool
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.utils import AgentError

THINKING_S = 0.5


class Scripted(Model):
    """A model that says what it was told to say."""

    def __init__(self, codes: list[str]) -> None:
        super().__init__(model_id="scripted")
        self._codes = iter(codes)

    def generate(self, messages: Any, **options: Any) -> ChatMessage:  # noqa: ARG002 - a scripted one does not listen
        """Return the next answer."""
        return ChatMessage(role="assistant", content=f"Thought: go on.\n<code>\n{next(self._codes)}\n</code>")


@tool
def double(text: str) -> str:
    """Say something twice.

    Args:
        text: what to say
    """
    return text + text


def executed(executor: CellblockExecutor, codes: list[str]) -> list[dict[str, Any]]:
    """Run codes as an agent's steps do; an error of the code is one of the answers."""
    answers: list[dict[str, Any]] = []
    for code in codes:
        try:
            output = executor(code)
        except AgentError as error:
            answers.append({"error": str(error), "caught_at": time.monotonic()})
            # a kernel drops what comes while it still tells of an error; a model takes longer to think
            time.sleep(THINKING_S)
        else:
            answers.append({"output": output.output, "logs": output.logs})
        answers[-1]["at"] = time.monotonic()
    return answers


def main() -> None:
    """Obey the order."""
    order = json.load(sys.stdin)
    executor = CellblockExecutor(AgentLogger(level=LogLevel.OFF), order["url"], order["token"])
    try:
        if order.get("agent"):
            agent = CodeAgent(
                [double], Scripted(order["codes"]), executor=executor, verbosity_level=LogLevel.OFF
            )
            answer: Any = {"final": agent.run("Do it.", additional_args={"given": order["given"]})}
            answer["observed"] = [
                step.observations for step in agent.memory.steps if hasattr(step, "observations")
            ]
        else:
            answer = executed(executor, order["codes"])
    finally:
        executor.cleanup()
    print(json.dumps(answer))  # noqa: T201 - it is a program


if __name__ == "__main__":
    main()

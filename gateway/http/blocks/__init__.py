"""Result blocks: tool calls answered as Anthropic's own code execution does, by otari's contract."""

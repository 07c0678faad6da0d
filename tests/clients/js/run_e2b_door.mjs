// E2B's SDK for JavaScript, told by lines of JSON on stdin what to do; each is answered by one line.
import { createInterface } from 'node:readline'
import { Sandbox } from '@e2b/code-interpreter'

const KINDS = { text: 'text/plain', html: 'text/html', png: 'image/png' }
let box

const operations = {
  async open({ sandbox }) {
    box = sandbox ? await Sandbox.connect(sandbox) : await Sandbox.create()
    return { sandbox: box.sandboxId, kernel: (await box.listCodeContexts())[0].id }
  },
  async run({ code, timeout_s }) {
    const said = { stdout: '', stderr: '' }
    const found = { results: [], error: null, raised: null }
    try {
      const execution = await box.runCode(code, {
        timeoutMs: timeout_s ? timeout_s * 1000 : 120_000,
        onStdout: (message) => (said.stdout += message.line),
        onStderr: (message) => (said.stderr += message.line),
      })
      found.results = execution.results.map((result) =>
        Object.fromEntries(
          Object.entries(KINDS).filter(([name]) => result[name]).map(([name, kind]) => [kind, result[name]])
        )
      )
      found.error = execution.error ? [execution.error.name, execution.error.value] : null
    } catch (error) {
      found.raised = [error.constructor.name, String(error.message)]
    }
    return { ...found, ...said }
  },
  async foreign({ sandbox }) {
    const said = []
    for (const call of [
      () => Sandbox.connect(sandbox),
      () => Sandbox.getInfo(sandbox),
      () => Sandbox.setTimeout(sandbox, 60_000),
      () => Sandbox.pause(sandbox),
      () => Sandbox.kill(sandbox),
    ]) {
      try {
        said.push(String(await call()))
      } catch (error) {
        said.push([error.constructor.name, String(error.message)])
      }
    }
    return said
  },
  async close() {
    await box.kill()
    return null
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  let answer
  try {
    answer = { answer: await operations[order.op](order) }
  } catch (error) {
    answer = { failed: [error.constructor.name, String(error.message)] }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
}

// E2B's own SDK for JavaScript against a gateway. Reads a JSON object with `scenarios` from stdin; writes one,
// the outcome of each scenario by its name.
import { readFileSync } from 'node:fs'
import { Sandbox } from '@e2b/code-interpreter'

const job = JSON.parse(readFileSync(0, 'utf8'))
const QUOTED = 'it\'s a "b" \\ $HOME `id`\nnext'
const TRICK = "');import os;os.environ['HACKED']='1';('"
let shared

const box = async () => (shared ??= await Sandbox.create({ metadata: { who: 'shared one' }, envs: { QUOTED } }))

async function failed(call) {
  try {
    await call()
  } catch (error) {
    return [error.constructor.name, String(error.message)]
  }
  return ['nothing', '']
}

const scenarios = {
  async results() {
    const sandbox = await box()
    const seen = []
    const code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7"
    const streams = await sandbox.runCode(code, {
      onStdout: (message) => seen.push(['stdout', message.line]),
      onStderr: (message) => seen.push(['stderr', message.line]),
      onResult: (result) => seen.push(['result', result.text]),
    })
    const error = await sandbox.runCode('1 / 0')
    const plot = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4]); plt.show()')
    const frame = await sandbox.runCode("import pandas as pd\npd.DataFrame({'a': [1, 2]})")
    return {
      text: streams.text,
      logs: streams.logs,
      count: streams.executionCount,
      seen,
      error: [error.error.name, error.error.value],
      png: plot.results[0].png.slice(0, 8),
      points: plot.results[0].chart.elements[0].points,
      data: frame.results[0].data,
      html: frame.results[0].html.includes('<table'),
    }
  },
  async environment() {
    const sandbox = await box()
    const show = "import os, json; print(json.dumps([os.environ.get(n) for n in ('QUOTED', 'ONCE', 'HACKED')]))"
    const seen = async (options) => JSON.parse((await sandbox.runCode(show, options)).logs.stdout.join(''))
    return {
      lasting: await seen(),
      once: await seen({ envs: { ONCE: TRICK } }),
      after: await seen(),
      command: (await sandbox.commands.run('printf "%s|%s" "$QUOTED" "$ONCE"', { envs: { ONCE: '1' } })).stdout,
    }
  },
  async contexts() {
    const sandbox = await box()
    await sandbox.files.makeDir('work')
    await sandbox.runCode("state = 'first'; open('work/shared', 'w').write('x')")
    const other = await sandbox.createCodeContext({ language: 'python', cwd: '/home/user/work' })
    const found = {
      made: [other.language, other.cwd],
      apart: (await sandbox.runCode('state', { context: other })).error.name,
      files: (await sandbox.runCode('import os; state = 1; os.listdir()', { context: other })).text,
      listed: (await sandbox.listCodeContexts()).length,
    }
    await sandbox.restartCodeContext(other)
    found.restarted = (await sandbox.runCode('state', { context: other })).error.name
    await sandbox.removeCodeContext(other)
    found.removed = await failed(() => sandbox.runCode('1', { context: other }))
    found.language = await failed(() => sandbox.runCode('1', { language: 'cobol' }))
    found.left = (await sandbox.listCodeContexts()).length
    return found
  },
  async files() {
    const sandbox = await box()
    const written = await sandbox.files.write('f/ü.txt', 'öne')
    const several = await sandbox.files.write([
      { path: 'f/1', data: '1' },
      { path: '/home/user/f/2', data: new Blob(['22']) },
    ])
    const found = {
      written: [written.name, written.path, written.type],
      several: several.map((info) => info.path),
      read: await sandbox.files.read('/home/user/f/ü.txt'),
      bytes: [...(await sandbox.files.read('f/2', { format: 'bytes' }))],
      listed: (await sandbox.files.list('f')).map((entry) => [entry.name, entry.type]),
      exists: [await sandbox.files.exists('f/1'), await sandbox.files.exists('f/none')],
      made: [await sandbox.files.makeDir('f/d'), await sandbox.files.makeDir('f/d')],
      renamed: (await sandbox.files.rename('f/1', 'f/d/one')).path,
    }
    await sandbox.files.remove('f/d')
    found.gone = await sandbox.files.exists('f/d')
    found.outside = await failed(() => sandbox.files.read('/etc/passwd'))
    found.missing = await failed(() => sandbox.files.read('f/none'))
    return found
  },
  async commands() {
    const sandbox = await box()
    const seen = []
    const done = await sandbox.commands.run('echo out; echo err >&2', { onStdout: (text) => seen.push(text) })
    const found = { plain: [done.stdout, done.stderr, done.exitCode], seen }
    found.failed = await failed(() => sandbox.commands.run('exit 3'))
    const cat = await sandbox.commands.run('cat; echo end', { background: true, stdin: true })
    found.running = (await sandbox.commands.list()).filter((p) => p.pid === cat.pid).length
    await sandbox.commands.sendStdin(cat.pid, 'line\n')
    await sandbox.commands.closeStdin(cat.pid)
    found.echoed = (await cat.wait()).stdout
    const sleeper = await sandbox.commands.run('sleep 60', { background: true })
    found.killed = [await sleeper.kill(), await sandbox.commands.kill(999999)]
    found.afterKill = await failed(() => sleeper.wait())
    found.deadline = (await failed(() => sandbox.commands.run('sleep 31', { timeoutMs: 500 })))[0]
    return found
  },
  async deadline() {
    const sandbox = await box()
    await sandbox.runCode("kept = 'here'")
    const began = Date.now()
    const raised = await failed(() => sandbox.runCode('import time; time.sleep(60)', { timeoutMs: 1000 }))
    const took = Date.now() - began
    return { raised, took, kept: (await sandbox.runCode('kept')).text }
  },
  async life() {
    const sandbox = await Sandbox.create({ metadata: { life: '1' }, timeoutMs: 600_000 })
    const info = await sandbox.getInfo()
    const pages = Sandbox.list({ query: { metadata: { life: '1' } } })
    const found = {
      info: [info.sandboxId === sandbox.sandboxId, info.templateId, info.metadata, info.state],
      listed: (await pages.nextItems()).map((each) => each.sandboxId === sandbox.sandboxId),
      running: await sandbox.isRunning(),
    }
    await sandbox.setTimeout(60_000)
    await sandbox.runCode('kept = 1')
    found.paused = [await sandbox.pause(), await sandbox.isRunning()]
    const other = await Sandbox.connect(sandbox.sandboxId)
    found.cameBack = [await other.isRunning(), (await other.runCode('kept')).text]
    found.killed = [await sandbox.kill(), await sandbox.isRunning()]
    found.gone = [
      (await failed(() => sandbox.getInfo()))[0],
      (await failed(() => sandbox.runCode('1')))[0],
      (await failed(() => sandbox.files.list('.')))[0],
      (await failed(() => sandbox.commands.run('true')))[0],
    ]
    return found
  },
  async not_offered() {
    const sandbox = await box()
    return {
      snapshot: await failed(() => sandbox.createSnapshot()),
      network: await failed(() => Sandbox.create({ allowInternetAccess: true })),
      template: await failed(() => Sandbox.create('my-own')),
      pty: await failed(() => sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })),
      watch: await failed(() => sandbox.files.watchDir('/home/user', () => {})),
    }
  },
  async foreign() {
    const found = {}
    for (const name of [job.id, '0'.repeat(20)]) {
      found[name] = [
        await failed(() => Sandbox.connect(name)),
        await failed(() => Sandbox.getInfo(name)),
        await failed(() => Sandbox.setTimeout(name, 5000)),
        [String(await Sandbox.kill(name))],
      ]
    }
    return found
  },
  async create_one() {
    const sandbox = await Sandbox.create()
    await sandbox.runCode("kept = 'before'; open('file', 'w').write('f')")
    return { id: sandbox.sandboxId }
  },
}

const outcome = {}
for (const name of job.scenarios) {
  try {
    outcome[name] = await scenarios[name]()
  } catch (error) {
    outcome[name] = { failed: String(error.stack) }
  }
}
await shared?.kill()
process.stdout.write(JSON.stringify(outcome) + '\n', () => process.exit(0))

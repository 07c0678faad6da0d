// A small page that runs cells on a Jupyter server of another origin, with the libraries of JupyterLab's own build.
//
// JupyterLab hands its shared modules to each extension before it starts itself. This "extension" takes the modules that
// it needs and never says that it is ready, so that JupyterLab does not start: what is left is a page with
// @jupyterlab/services, rendermime and outputarea exactly as JupyterLab has them.
window._JUPYTERLAB = {
  page: {
    init(scope) {
      start(async name => (await Object.values(scope[name])[0].get())()).catch(error => {
        document.getElementById('status').textContent = `failed: ${error.message}`;
        throw error;
      });
      return new Promise(() => {});
    }
  }
};

async function start(load) {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const [{ KernelManager, KernelSpecManager, ServerConnection, SessionManager }, outputs, rendermime, widgets] =
    await Promise.all(
      ['@jupyterlab/services', '@jupyterlab/outputarea', '@jupyterlab/rendermime', '@lumino/widgets'].map(load)
    );
  const baseUrl = wanted.get('gateway') + '/';
  const serverSettings = ServerConnection.makeSettings({
    baseUrl,
    wsUrl: baseUrl.replace('http', 'ws'),
    token: wanted.get('token'),
    appendToken: true
  });
  const kernels = new KernelManager({ serverSettings });
  const sessions = new SessionManager({ serverSettings, kernelManager: kernels });
  const specs = new KernelSpecManager({ serverSettings });
  await Promise.all([specs.ready, sessions.ready]);

  const path = wanted.get('path');
  const session =
    (await sessions.findByPath(path)) !== undefined
      ? sessions.connectTo({ model: await sessions.findByPath(path) })
      : await sessions.startNew({ path, type: 'notebook', name: path, kernel: { name: specs.specs.default } });
  const registry = new rendermime.RenderMimeRegistry({ initialFactories: rendermime.standardRendererFactories });
  const cells = JSON.parse(wanted.get('cells'));

  const status = document.getElementById('status');
  const show = () => {
    const kernel = session.kernel;
    status.textContent = kernel?.connectionStatus === 'connected' ? kernel.status : 'disconnected';
  };
  const greet = async kernel => {
    // what a binary message brings is said, and sent back
    kernel.registerCommTarget('echo', comm => {
      comm.onMsg = message => {
        document.title = `${message.buffers[0].byteLength} bytes`;
        comm.send({}, undefined, message.buffers);
      };
    });
    kernel.statusChanged.connect(show);
    kernel.connectionStatusChanged.connect(show);
    await kernel.info;
    show();
  };
  session.kernelChanged.connect((_, { newValue }) => newValue && greet(newValue));
  document.getElementById('interrupt').onclick = () => session.kernel.interrupt();
  document.getElementById('restart').onclick = () => session.kernel.restart();

  for (const { source, metadata } of cells) {
    const cell = document.createElement('div');
    cell.className = 'cell';
    const text = document.createElement('pre');
    text.textContent = source;
    const button = document.createElement('button');
    button.textContent = 'Run';
    const prompt = document.createElement('span');
    prompt.className = 'prompt';
    cell.append(button, ' [', prompt, ']', text);
    document.getElementById('cells').append(cell);
    const area = new outputs.OutputArea({ model: new outputs.OutputAreaModel({ trusted: true }), rendermime: registry });
    widgets.Widget.attach(area, cell);
    button.onclick = async () => {
      prompt.textContent = '*';
      try {
        const reply = await outputs.OutputArea.execute(source, area, { session }, metadata);
        prompt.textContent = reply?.content.execution_count ?? '';
      } catch (error) {
        prompt.textContent = '';
        console.error(error);
      }
    };
  }
  window.page = { services: await load('@jupyterlab/services'), serverSettings };
  await greet(session.kernel);
}

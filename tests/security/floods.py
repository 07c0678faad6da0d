"""Floods of output: code that says more than anybody wants to hear, in every shape."""

from __future__ import annotations

# An attacker's own ZMTP, on the connection that the gateway has made to the kernel's iopub socket
OWN_WIRE = """
import os, select, socket, struct
def connections():
    found = []
    for name in os.listdir('/proc/self/fd'):
        try:
            if not os.readlink('/proc/self/fd/' + name).startswith('socket:['): continue
            one = socket.socket(fileno=os.dup(int(name)))
            here, listening = one.getsockname(), one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError: continue
        if isinstance(here, str) and here.endswith('-2') and not listening: found.append(one)
    return found
def put(one, data):
    view = memoryview(data)
    while view:
        select.select([], [one], [])
        try: view = view[one.send(view):]
        except BlockingIOError: pass
(one, *_) = connections()
def part(size): return b'\\3' + struct.pack('>Q', size) + bytes(min(size, 1 << 20))
put(one, b'\\1\\6stream')
"""
OWN_MESSAGE = """
kernel = get_ipython().kernel
def say(size):
    content = {'name': 'stdout', 'text': 'x' * size}
    kernel.session.send(kernel.iopub_socket, 'stream', content, parent=kernel.get_parent('shell'), ident=b's')
"""
PICTURE = """
import os
from IPython.display import Image, display
def picture(mib): return Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + os.urandom(mib << 20), format='png')
"""
CHAIN = """
def fail(n):
    try:
        if n: fail(n - 1)
        1 / 0
    except Exception as error: raise ValueError('y' * 10_000) from error
fail(150)
"""

PARTS = """
import zmq
one = get_ipython().kernel.iopub_thread.socket
while True: one.send(b'x' * 1024, zmq.SNDMORE)
"""

FLOODS = {
    "one huge line": "print('x' * (200 << 20))",
    "huge lines": "for _ in range(30): print('x' * (20 << 20))",
    "a million prints": "for n in range(1_000_000): print(n)",
    "a million displays": "from IPython.display import display\nfor n in range(1_000_000): display(n)",
    "a huge picture": f"{PICTURE}\ndisplay(picture(40))",
    "large pictures": f"{PICTURE}\none = picture(15)\nfor _ in range(20): display(one)",
    "pictures within the limit": f"{PICTURE}\none = picture(5)\nfor _ in range(20): display(one)",
    "carriage returns": "import sys\nfor n in range(1_000_000): sys.stdout.write(f'\\r{n}%')",
    "flushed carriage returns": "for n in range(1_000_000): print('\\r', n, end='', flush=True)",
    "cleared outputs": "from IPython.display import clear_output\nwhile True: clear_output(1); print(1)",
    "a huge traceback": "raise ValueError('x' * (10 << 20))",
    "a traceback past the limit of messages": "raise ValueError('x' * (40 << 20))",
    "chained tracebacks": CHAIN,
    "a message past the limit": f"{OWN_MESSAGE}\nsay(64 << 20)",
    "messages at the limit": f"{OWN_MESSAGE}\nfor _ in range(40): say((8 << 20) - 4096)",
    "messages of a MiB": f"{OWN_MESSAGE}\nfor _ in range(500): say(1 << 20)",
    "raw standard error": "import os\nfor _ in range(200_000): os.write(2, b'x' * 4096)",
    "endless parts": PARTS,
    "endless parts on the wire": f"{OWN_WIRE}\nfor _ in range(200): put(one, b'\\1\\0' * 32768)",
    "endless small parts on the wire": f"{OWN_WIRE}\nwhile True: put(one, (b'\\1\\x80' + bytes(128)) * 500)",
    "endless large parts on the wire": f"{OWN_WIRE}\nfor _ in range(500): put(one, part(1 << 20))",
    "an endless part on the wire": f"{OWN_WIRE}\nput(one, part(1 << 30))\nwhile True: put(one, bytes(65536))",
    "byte by byte on the wire": f"{OWN_WIRE}\nput(one, part(1 << 20)[:9])\nwhile True: put(one, b'x')",
    "tiny messages on the wire": f"{OWN_WIRE}\nput(one, b'\\0\\0')\nwhile True: put(one, b'\\0\\0' * 32768)",
}

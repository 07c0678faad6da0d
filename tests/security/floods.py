"""Floods of output: code that says more than anybody wants to hear, in every shape."""

from __future__ import annotations

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
    "carriage returns": "import sys\nfor n in range(1_000_000): sys.stdout.write(f'\\r{n}%')",
    "flushed carriage returns": "for n in range(1_000_000): print('\\r', n, end='', flush=True)",
    "cleared outputs": "from IPython.display import clear_output\nwhile True: clear_output(1); print(1)",
    "a huge traceback": "raise ValueError('x' * (10 << 20))",
    "a traceback past the limit of messages": "raise ValueError('x' * (40 << 20))",
    "chained tracebacks": CHAIN,
    "a message past the limit": f"{OWN_MESSAGE}\nsay(64 << 20)",
    "messages at the limit": f"{OWN_MESSAGE}\nfor _ in range(40): say(31 << 20)",
    "messages of a MiB": f"{OWN_MESSAGE}\nfor _ in range(500): say(1 << 20)",
    "raw standard error": "import os\nfor _ in range(200_000): os.write(2, b'x' * 4096)",
    "endless parts": PARTS,
}

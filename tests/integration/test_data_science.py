"""Ordinary data science in a cell: what it prints and shows is what it prints and shows without one."""

from __future__ import annotations

import asyncio
import base64
import re
import struct
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bare_kernel import BareKernel, bare_kernel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway

ENVIRONMENT = Path("/srv/cellblock/envs/python3")

# Each runs in a cell and, the same, without one; stdout and displays must be equal, and stderr empty.
CELLS = {
    "numpy linear algebra": """
import numpy as np
a = np.array([[4.0, 1, 2], [1, 3, 0], [2, 0, 5]])
print(np.linalg.solve(a, [1, 2, 3]).round(6), np.linalg.det(a).round(6))
u, s, v = np.linalg.svd(a)
print(s.round(6), np.allclose(u @ np.diag(s) @ v, a), np.linalg.eigvalsh(a).round(6))
big = np.random.default_rng(1).normal(size=(300, 300))
print(np.abs(big @ np.linalg.inv(big) - np.eye(300)).max() < 1e-8, float(big.sum().round(6)))
""",
    "pandas groupby, and CSV through the home": """
import pandas as pd
frame = pd.DataFrame({"city": list("abcab"), "sold": [3, 1, 4, 1, 5], "price": [1.5, 2.0, 2.5, 3.0, 3.5]})
frame.to_csv("sales.csv", index=False)
again = pd.read_csv("sales.csv")
print(again.equals(frame))
print(again.groupby("city").agg(sold=("sold", "sum"), price=("price", "mean")))
again.describe()
""",
    "scipy optimize": """
from scipy import optimize, stats, integrate
print(optimize.brentq(lambda x: x**3 - 2, 0, 2).__round__(9))
found = optimize.minimize(optimize.rosen, [1.3, 0.7, 0.8], method="BFGS")
print(found.success, found.x.round(4), integrate.quad(lambda x: x**2, 0, 3)[0].__round__(9))
print(stats.ttest_ind([1, 2, 3, 4], [2, 3, 4, 9]).pvalue.round(9))
""",
    "scikit-learn on two processes": """
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
x, y = load_iris(return_X_y=True)
model = RandomForestClassifier(n_estimators=20, random_state=0, n_jobs=2)
print(cross_val_score(model, x, y, cv=3, n_jobs=2).round(4))
model.fit(x, y).predict(x[:3])
""",
    "fork: children print, and give results": """
import multiprocessing, sys
def square(n):
    sys.stdout.write(f"child has {n}\\n")  # at once: two children's prints may come in each other's middle
    sys.stdout.flush()
    return n * n
context = multiprocessing.get_context("fork")
with context.Pool(2) as pool:
    squares = [pool.apply(square, (n,)) for n in range(3)]
child = context.Process(target=square, args=(9,))
child.start(); child.join()
print(squares, child.exitcode)
""",
    "spawn and forkserver": """
open("spawned.py", "w").write('''
def cube(n):
    print("spawned child has", n, flush=True)
    return n ** 3
''')
import multiprocessing, spawned, time
cubes = []
for method in ("spawn", "forkserver"):
    with multiprocessing.get_context(method).Pool(1) as pool:
        cubes += pool.map(spawned.cube, [2, 3])
time.sleep(0.5)  # such children write to the kernel's own descriptors: their words take a way of their own
print(cubes)
""",
    "queues, shared memory, locks between processes": """
from multiprocessing import get_context, shared_memory
context = get_context("fork")
queue, lock, total = context.Queue(), context.Lock(), context.Value("i", 0)
block = shared_memory.SharedMemory(create=True, size=16)
def work(n):
    with lock:
        total.value += n
        block.buf[n] = n
    queue.put(n)
children = [context.Process(target=work, args=(n,)) for n in range(1, 4)]
[child.start() for child in children]
print(sorted(queue.get(timeout=20) for _ in children))
[child.join() for child in children]
print(total.value, bytes(block.buf[:4]))
block.close(); block.unlink()
""",
    "concurrent.futures": """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
def double(n):
    return 2 * n
with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(double, range(5))))
with ProcessPoolExecutor(2) as pool:
    print(list(pool.map(abs, [-1, -2])), pool.submit(pow, 2, 10).result())
""",
    "subprocess": """
import subprocess, sys
done = subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read()[::-1]); sys.exit(3)"],
                      input="abc", capture_output=True, text=True)
print(repr(done.stdout), repr(done.stderr), done.returncode)
print(subprocess.check_output("printf '%s\\\\n' one two | sort -r | tr a-z A-Z", shell=True, text=True))
""",
    "sqlite in a file": """
import sqlite3
with sqlite3.connect("shop.db") as store:
    store.execute("pragma journal_mode = wal")
    store.execute("create table items (name text primary key, price real)")
    store.executemany("insert into items values (?, ?)", [("tea", 2.5), ("jam", 4.0)])
store.close()
print(sqlite3.connect("shop.db").execute("select name, price * 2 from items order by name").fetchall())
""",
    "asyncio": """
import asyncio
async def later(n):
    await asyncio.sleep(0.01 * n)
    return n
print(await asyncio.gather(*(later(n) for n in (3, 1, 2))))
process = await asyncio.create_subprocess_exec("echo", "from a child", stdout=asyncio.subprocess.PIPE)
print((await process.communicate())[0])
await asyncio.to_thread(sum, [1, 2])
""",
    "shell escapes": """
!mkdir -p listed && touch listed/one listed/two && ls listed
files = !ls listed
print(files)
!echo $((6 * 7))
""",
    "a bash cell": """%%bash
for n in 1 2 3; do echo "line $n"; done
cd /tmp && pwd
echo "${BASH_VERSION%%.*}"
""",
    "temporary files": """
import os, tempfile
with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder) as file:
    file.write(b"x" * 1000); file.flush()
    print(os.path.getsize(file.name), os.listdir(folder) == [os.path.basename(file.name)])
print(os.path.exists(folder))
""",
    "threads": """
import queue, threading
box, local = queue.Queue(), threading.local()
def put(n):
    local.n = n
    box.put(local.n * 10)
threads = [threading.Thread(target=put, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(sorted(box.queue))
threading.Thread(target=lambda: print("from a thread")).start()
""",
    "gcc": r"""
open("sum.c", "w").write('''
#include <math.h>
#include <stdio.h>
int main(void) { double s = 0; for (int i = 1; i < 1001; i++) s += sqrt(i); printf("%.6f\\n", s); return 0; }
''')
!gcc -O2 -Wall sum.c -o sum -lm && ./sum
open("twice.c", "w").write("int twice(int n) { return 2 * n; }")
!gcc -shared -fPIC twice.c -o twice.so
import ctypes, os
print(ctypes.CDLL(os.path.abspath("twice.so")).twice(21))
""",
    "ctypes callback": """
import ctypes
libc = ctypes.CDLL(None)
numbers = (ctypes.c_int * 5)(5, 1, 4, 2, 3)
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
libc.qsort(numbers, 5, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
print(list(numbers))
""",
    "unicode": """
import unicodedata
text = "Grüße, 東京 🎈 עברית ß→ẞ"
open("ünïcode-東京.txt", "w").write(text)
print(open("ünïcode-東京.txt").read() == text, text, unicodedata.name("🎈"))
naïve = {"ключ": "значение"}
naïve
""",
    "locale and encodings": """
import locale, sys
print(sys.getdefaultencoding(), sys.getfilesystemencoding(), sys.stdout.encoding, sys.stderr.encoding)
print(locale.getpreferredencoding(), locale.getlocale())
print(f"{1234567.891:,.2f}", "%.3g" % 1e-7)
""",
    "rich display bundles": """
from IPython.display import HTML, JSON, Latex, Markdown, SVG, display
display(HTML("<b>bold</b>"), Markdown("# title"), Latex("$x^2$"), JSON({"a": [1, None, 2.5]}))
display({"text/plain": "plain", "application/vnd.test+json": {"deep": {"er": 1}}}, raw=True)
display(SVG('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'))
class Shown:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": "shown", "text/html": "<i>shown</i>"}
Shown()
""",
    "pickling": """
import pickle
from fractions import Fraction
whole = {"a": [1, 2.5, Fraction(1, 3)], ("b", 1): {3, 4}}
with open("whole.pickle", "wb") as file:
    pickle.dump(whole, file, protocol=5)
print(pickle.load(open("whole.pickle", "rb")) == whole, len(pickle.dumps(bytes(1 << 20))) > 1 << 20)
""",
    "zip and tar files": """
import io, tarfile, zipfile
with zipfile.ZipFile("archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("folder/one.txt", "one " * 1000)
with zipfile.ZipFile("archive.zip") as archive:
    print(archive.namelist(), archive.getinfo("folder/one.txt").file_size, archive.testzip())
with tarfile.open("archive.tar.gz", "w:gz") as archive:
    archive.add("archive.zip")
print(tarfile.open("archive.tar.gz").getnames())
""",
    "figure": """
import matplotlib.pyplot as plt
import numpy as np
x = np.linspace(0, 6, 200)
plt.plot(x, np.sin(x), label="sin"); plt.title("a figure"); plt.legend(); plt.xlabel("$x^2$")
plt.show()
""",
    "second figure, inline": """
%matplotlib inline
import matplotlib.pyplot as plt
figure, axes = plt.subplots(1, 2)
axes[0].bar(["a", "b"], [1, 2]); axes[1].imshow([[0, 1], [1, 0]]);
""",
    "clocks and random numbers": """
import datetime, random, time, uuid, zoneinfo
random.seed(7)
print(random.random(), len(uuid.uuid4().hex), abs(time.time() - datetime.datetime.now().timestamp()) < 1)
print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")).utcoffset())
""",
}


@pytest.fixture(scope="module")
async def bare() -> AsyncIterator[BareKernel]:
    """The same environment's kernel without a sandbox."""
    with tempfile.TemporaryDirectory(prefix="bare-", dir="/var/tmp") as home:
        async with bare_kernel(ENVIRONMENT / "bin" / "python", Path(home)) as kernel:
            yield kernel


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    """What the cells gave without a sandbox: each is run there once."""
    return {}


@pytest.fixture(scope="module", params=["python3", "python3-scientific"])
async def lab(request: pytest.FixtureRequest, gateway: Gateway) -> AsyncIterator[Lab]:
    """A kernel of each of the shipped kernelspecs, used by many tests one after the other."""
    async with gateway.client() as client:
        kernel_id = await client.start(request.param)
        yield Lab(client, kernel_id)
        await client.delete(kernel_id)


class Lab:
    """One kernel in a cell."""

    def __init__(self, client: Client, kernel_id: str) -> None:
        self.client = client
        self.kernel_id = kernel_id

    async def run(self, code: str, **body: Any) -> dict[str, Any]:
        """Execute code and return the result."""
        return await self.client.run(self.kernel_id, code, **body)

    async def out(self, code: str) -> str:
        """Execute code that must succeed without a word on stderr, and return its stdout."""
        result = await self.run(code)
        assert (result["status"], result["stderr"]) == ("ok", ""), result
        return str(result["stdout"])


@pytest.mark.parametrize("title", CELLS)
async def test_the_same_as_without_a_sandbox(
    title: str, lab: Lab, bare: BareKernel, expected: dict[str, dict[str, Any]]
) -> None:
    """Ordinary code prints and shows in a cell what it prints and shows without one, and no noise."""
    if title not in expected:
        expected[title] = await bare.run(CELLS[title])
        assert expected[title]["status"] == "ok", expected[title]

    result = await lab.run(CELLS[title])

    assert result["status"] == "ok", result
    assert result["stdout"] == expected[title]["stdout"]
    assert displays(result) == expected[title]["displays"]
    assert result["stderr"] == ""
    assert not result["truncated"]


async def test_a_plot_comes_back_as_a_valid_png(lab: Lab) -> None:
    """The figure's PNG has the right size and checksums, and pixels that are not all alike."""
    result = await lab.run(
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 3), dpi=100)\nplt.plot([1, 3, 2]);"
    )

    shown = displays(result)
    assert [sorted(data) for data in shown] == [["image/png", "text/plain"]]
    width, height, pixels = png_of(shown[0]["image/png"])
    assert (200 < width <= 420, 150 < height <= 320) == (True, True)
    assert len(set(pixels)) > 10
    assert result["stderr"] == ""


async def test_timeit(lab: Lab) -> None:
    """%timeit measures and says so."""
    assert re.search(
        r"per loop \(mean ± std\. dev\. of 3 runs, 10 loops each\)",
        await lab.out("%timeit -n 10 -r 3 sum(range(99))"),
    )


async def test_a_module_of_ones_own(lab: Lab) -> None:
    """%%writefile makes a module in the home, and import finds it; editing and reloading it works, too."""
    written = await lab.run('%%writefile mine.py\ndef say():\n    return "from the home"\n')
    assert written["stdout"] == "Writing mine.py\n"

    assert await lab.out("import mine\nprint(mine.say())") == "from the home\n"
    await lab.run('%%writefile mine.py\ndef say():\n    return "edited again"\n')
    assert await lab.out("import importlib; print(importlib.reload(mine).say())") == "edited again\n"


async def test_the_home_is_where_a_kernel_starts(lab: Lab) -> None:
    """The working directory is the home, is writable, and ~ names it."""
    same = "import os, pathlib; print(os.getcwd() == str(pathlib.Path.home()) == os.path.expanduser('~'))"

    assert await lab.out(same) == "True\n"
    assert await lab.out("print(os.access('.', os.W_OK))") == "True\n"


async def test_input_is_refused_over_rest(lab: Lab) -> None:
    """There is nobody to ask over REST: input() raises at once and does not wait."""
    result = await lab.run("input('name? ')", timeout_s=10)

    assert result["status"] == "error"
    assert result["error"]["ename"] == "StdinNotImplementedError"


async def test_big_output_is_cut_with_a_mark(lab: Lab) -> None:
    """Output beyond the cap loses its middle; head, tail and a mark with the number of bytes remain."""
    result = await lab.run("print('first line'); print(('x' * 99 + '\\n') * 300_000); print('last line')")

    assert result["status"] == "ok"
    assert result["truncated"] is True
    assert result["stdout"].startswith("first line\nxxx")
    assert result["stdout"].endswith("last line\n")
    marks = r"\[cellblock: \d+ bytes of output cut\]|\[cellblock\] \d+ bytes of output were cut here"
    assert re.search(marks, str(result["outputs"])[:40_000_000])
    assert len(result["stdout"]) < 25 << 20


async def test_progress_bars(lab: Lab) -> None:
    """A progress bar's carriage returns arrive as written, on stderr, and clear_output clears."""
    bar = (
        "import sys, time\n"
        "for n in range(5):\n"
        "    sys.stderr.write(f'\\r{n * 25:3d}%|' + '█' * n); sys.stderr.flush(); time.sleep(0.05)\n"
    )
    result = await lab.run(bar)
    assert result["stderr"] == "".join(f"\r{n * 25:3d}%|" + "█" * n for n in range(5))

    cleared = "from IPython.display import clear_output\nprint('old'); clear_output(); print('new')"
    assert await lab.out(cleared) == "new\n"


async def test_updated_displays(lab: Lab) -> None:
    """update_display changes what was shown before, wherever it was shown."""
    begin = "from IPython.display import display\nh = display('0 %', display_id=True)\n"
    result = await lab.run(begin + "print('between')\nh.update('100 %')")

    assert [data["text/plain"] for data in displays(result)] == ["'100 %'"]


async def test_cpu_count_is_believable(lab: Lab) -> None:
    """Libraries that size their pools by the number of processors get a number that exists."""
    seen, usable = (await lab.out("import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))")).split()
    on_host = len(await asyncio.to_thread(lambda: list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*"))))

    assert 1 <= int(usable) <= int(seen) <= on_host


async def test_errors_come_with_their_traceback(lab: Lab) -> None:
    """A user's error has the frames of the user's code, and what was printed before it."""
    result = await lab.run("def f(x):\n    return 1 / x\nprint('before')\nf(0)")

    assert (result["status"], result["stdout"]) == ("error", "before\n")
    assert result["error"]["ename"] == "ZeroDivisionError"
    assert "return 1" in re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(result["error"]["traceback"]))


async def test_history_and_last_results(lab: Lab) -> None:
    """`_` and `In` work: the kernel is a whole IPython."""
    await lab.run("6 * 7")

    assert await lab.out("print(_, In[-2])") == "42 6 * 7\n"


def displays(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the bundles that a result shows, in order."""
    return [output["data"] for output in result["outputs"] if "data" in output]


def png_of(text: str) -> tuple[int, int, bytes]:
    """Return a PNG's width, height and raw pixels; its structure and checksums are verified."""
    data = base64.b64decode(text, validate=False)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    position, parts = 8, []
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", data, position + 8 + length)[0] == zlib.crc32(kind + body)
        parts.append((kind, body))
        position += 12 + length
    assert parts[-1][0] == b"IEND"
    width, height = struct.unpack_from(">II", parts[0][1])
    return width, height, zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))

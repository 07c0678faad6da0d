"""Become an ordinary user, for whom the checkout can be reached wherever it lies, and run a command.

Usage: as_user.py USER COMMAND [ARGUMENT…]
"""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import gateway
from gateway.privilege import make_reachable

if __name__ == "__main__":
    user = pwd.getpwnam(sys.argv[1])
    package = Path(gateway.__file__).resolve().parent
    make_reachable([Path(sys.prefix), Path(sys.base_prefix), package.parent])
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    os.execvp(sys.argv[2], sys.argv[2:])

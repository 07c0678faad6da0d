"""Look for secrets in tracked files, and for known vulnerabilities of what is locked: `make audit`.

A secret fails it, and so does a vulnerability. Without an answer of the advisories' service it says so and
goes on: whether a change is good does not depend on the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from detect_secrets import SecretsCollection
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).resolve().parent.parent
# detectors of what is a secret by its form; guesses by entropy or by a variable's name find mostly tests
DETECTORS = (
    "ArtifactoryDetector",
    "AWSKeyDetector",
    "AzureStorageKeyDetector",
    "BasicAuthDetector",
    "CloudantDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "JwtTokenDetector",
    "MailchimpDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PrivateKeyDetector",
    "PypiTokenDetector",
    "SendGridDetector",
    "SlackDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)
OWN = {"name": "CellblockKeyDetector", "path": f"file://{Path(__file__).with_name('own_keys.py')}"}
SERVICE_S = 10
AUDIT_S = 120


def tracked() -> list[str]:
    """List the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    return [name for name in listed.decode().split("\0") if name]


def secrets_in(names: list[str]) -> list[str]:
    """Return where files have what looks like a secret; a line may say `pragma: allowlist secret`."""
    found = SecretsCollection(root=str(ROOT))
    plugins = [OWN, *({"name": name} for name in DETECTORS)]
    filters = [
        {"path": "detect_secrets.filters.allowlist.is_line_allowlisted"},
        {"path": "detect_secrets.filters.heuristic.is_templated_secret"},
    ]
    with transient_settings({"plugins_used": plugins, "filters_used": filters}):
        for name in names:
            if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
                found.scan_file(name)
    return [f"{name}:{secret.line_number}: {secret.type}" for name, secret in found]


def vulnerabilities() -> tuple[list[str], str | None]:
    """Return what is known against the locked packages, and why that may not be all."""
    # agent frameworks and what benchmarks compare with are others': met as they are, and no part of ours
    others = ("agents", "bench")
    locks = sorted(lock for lock in (ROOT / "requirements").glob("*.txt") if not lock.stem.startswith(others))
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off"]
    command += ["--vulnerability-service=osv", f"--timeout={SERVICE_S}", "--format=json"]
    command += [f"--requirement={lock}" for lock in locks]
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=AUDIT_S)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [], f"the service did not answer within {AUDIT_S} s"
    except (ValueError, KeyError):
        words = done.stderr.strip().splitlines()
        return [], words[-1][:200] if words else "pip-audit said nothing"
    known = {
        f"{package['name']} {package['version']}: {each['id']}, fixed in {each['fix_versions'] or 'none'}"
        for package in packages
        for each in package.get("vulns", [])
    }
    skipped = sum("skip_reason" in package for package in packages)
    return sorted(known), f"{skipped} of {len(packages)} packages are not known there" if skipped else None


def main() -> int:
    """Look for both and say what was found."""
    names = tracked()
    secrets = secrets_in(names)
    for line in secrets:
        print(f"a secret? {line}")
    print(f"secrets: {len(secrets)} in {len(names)} files")
    known, lack = vulnerabilities()
    for line in known:
        print(f"vulnerable: {line}")
    if lack:
        print(f"vulnerabilities: not all could be asked for, which needs the network ({lack})")
    print(f"vulnerabilities: {len(known)} known")
    return 1 if secrets or known else 0


if __name__ == "__main__":
    sys.exit(main())

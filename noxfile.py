"""One entry for what a contributor runs: ``nox -l`` lists it. Sessions use the environment that nox runs in, where the
package is installed (CONTRIBUTING.md), so that nothing is built twice; ``.ci/run`` is the one that starts afresh."""

from __future__ import annotations

import os
import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]
SAFE = ["-P"] if sys.version_info >= (3, 11) else []  # the installed package, not whatever lies in the working folder
WORKERS = str(min(os.cpu_count() or 1, 8))


def python(session: nox.Session, *words: str) -> None:
    session.run(sys.executable, *SAFE, *words)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, its format, mypy"""
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")
    python(session, "-m", "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """the fast tests"""
    python(session, "-m", "pytest", "-q", "-n", WORKERS, *session.posargs)


@nox.session
def tests_full(session: nox.Session) -> None:
    """every case of every grid: before a release, and on a GPU"""
    python(session, "-m", "pytest", "-q", "-n", WORKERS, "-m", "slow or not slow", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """the C++ core under ASan, UBSan and TSan: nox -s sanitize [-- address | thread]"""
    python(session, "tests/sanitize/run.py", *session.posargs)


@nox.session
def properties(session: nox.Session) -> None:
    """the long run of the property tests: nox -s properties -- FILE.json [--inputs 100000]"""
    python(session, "tests/properties/campaign.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """the CPU report, bench/results/NAME.md: nox -s bench -- --name NAME"""
    if not session.posargs:
        session.error("say where the report goes: nox -s bench -- --name NAME")
    session.run(sys.executable, "bench/report.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """the examples of docstrings, and the paths and sections that texts name"""
    python(session, "-m", "pytest", "-q", "tests/test_docs.py", *session.posargs)

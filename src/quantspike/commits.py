"""Which commit is checked out, where git can tell."""

from __future__ import annotations

import subprocess
from pathlib import Path


def head_commit(root: Path) -> str | None:
    """The commit that is checked out, if the project is under git; marked where the code differs from it."""
    # A repository around it that does not hold the project has nothing to tell of it.
    if _git(root, "ls-files", "--error-unmatch", "dvc.yaml") is None:
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", "dvc.yaml", "stages", "src")
    return commit if commit is None or changed == "" else f"{commit}-dirty"


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers; `None` if it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None

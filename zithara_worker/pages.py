"""Where this host has what a message sends its reader to: a page of the documentation, a folder of the package."""

from __future__ import annotations

from pathlib import Path

_CLONE = Path(__file__).parent.parent
#: Where the Debian package puts the folders of a clone
_INSTALLED = {
    "docs": Path("/usr/share/doc/zithara-worker"),
    "packaging/magento": Path("/usr/share/zithara-worker/magento"),
    "packaging/monitoring": Path("/usr/share/doc/zithara-worker/examples/monitoring"),
}


def page(name: str) -> str:
    """The path of a page: page("install.md"). Its name in the project where neither a clone nor the package has it."""
    return _found("docs", name)


def folder(name: str) -> str:
    """The path of a folder of the project: folder("packaging/magento")."""
    return _found(name)


def _found(folder: str, name: str = "") -> str:
    places = (_CLONE / folder / name, _INSTALLED[folder] / name)
    return next((str(path) for path in places if path.exists()), f"{(Path(folder) / name)} of the project")

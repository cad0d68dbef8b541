"""Objects by `package.module:Name`: components of the package, and a user's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from ldmae.core.errors import UserError, nearest
from ldmae.core.files import fingerprint


def is_import_path(source: str) -> bool:
    """Says whether a source is `package.module:Name`, and neither `pretrained:NAME` nor `official:FILE`."""
    module, colon, name = source.partition(":")
    if module in ("pretrained", "official"):
        return False
    return bool(colon) and all(part.isidentifier() for part in f"{module}.{name}".split("."))


def import_object(path: str) -> Any:
    """Imports `package.module:Name`; the current directory is searched first, as by `python -m`.

    Raises:
        UserError: there is no such module or name, or importing it failed.
    """
    module_name, _, name = path.partition(":")
    found = _import_module(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(
                f"the module {module_name} ({getattr(found, '__file__', None) or found}) has no {part}"
                f"{nearest(part, dir(found))}; expected package.module:Name, a class or function in it"
            )
        found = getattr(found, part)
    return found


def code_fingerprint(path: str | None) -> str:
    """Returns a hash of the file that holds `package.module:Name`; empty where there is none."""
    if path is None or not is_import_path(path):
        return ""
    try:
        return fingerprint([Path(_import_module(path.partition(":")[0]).__file__).read_bytes()])
    except (UserError, OSError, AttributeError, TypeError):  # whoever uses it says so; or it has no file
        return ""


def require(what: str, *packages: str, install: str = "", otherwise: str = "") -> None:
    """Checks that packages are installed, without importing them.

    Raises:
        UserError: one is not; the message names what needs it, what to `install` and what to do `otherwise`.
    """
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    if lacking:
        install = install or " ".join(lacking).replace("_", "-")
        raise UserError(
            f"{what} needs the package {' and '.join(lacking)}; type: pip install {install}{otherwise}"
        )


def package_folder(package: str, install: str = "") -> Path:
    """Returns where an installed package lies, which is not imported; raises as `require`."""
    require("ldmae", package, install=install)
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])


def _import_module(name: str) -> Any:
    """Imports a module, which runs its code.

    Raises:
        UserError: there is no such module, or importing it failed.
    """
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.insert(0, folder)  # as `python -m` would have it; its own imports may come later still
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script without a main guard may end the program
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise UserError(
                f"there is no module {missing} in {folder} or among the installed packages; expected "
                "package.module:Name: go to the folder that holds it, or install it"
            ) from error
        raise UserError(
            f"importing {name} failed ({type(error).__name__}: {error}). To see the error alone: "
            f'python -c "import {name}"'
        ) from error

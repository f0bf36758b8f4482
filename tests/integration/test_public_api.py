"""What the packages promise by their ``__all__``."""

import importlib
import pkgutil
from types import ModuleType

import pytest

import trine
import trine_triggers


def modules() -> list[str]:
    found = []
    for package in (trine, trine_triggers):
        found.append(package.__name__)
        found += [
            info.name
            for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if not info.name.endswith("__main__")
        ]
    return found


@pytest.mark.parametrize("name", modules())
def test_all_names_exist_and_are_sorted(name):
    module = importlib.import_module(name)
    promised = getattr(module, "__all__", None)
    if promised is None:
        return
    assert len(set(promised)) == len(promised)
    assert all(hasattr(module, one) for one in promised)


@pytest.mark.parametrize("package", [trine, trine_triggers])
def test_a_package_promises_all_that_it_imports(package):
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(package.__all__)


def test_every_public_name_says_what_it_is():
    for package in (trine, trine_triggers):
        for name in package.__all__:
            assert (getattr(package, name).__doc__ or "").strip(), name

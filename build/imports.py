"""Stops a build whose binary lacks a module that the runner imports: on a host that would fail late, and rarely."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROGRAM = """
import sys
carried, modules, target = eval(sys.stdin.read())
class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in carried:
            raise ModuleNotFoundError(f"No module named {name!r} in the binary", name=name)
sys.meta_path.insert(0, Missing)
sys.path.insert(0, target)
for name in modules:
    __import__(name)
"""


def check(target: Path, carried: set[str]) -> None:
    """Every import statement of ours, below `target`, must name a carried module, also those inside functions; and all
    our modules must import in a Python that can find nothing else, which tells about click, yaml and the standard
    library too. Raises SystemExit."""
    missing = set()
    modules = []
    for path in sorted((target / "cronium_runner").rglob("*.py")):
        modules.append(".".join(path.relative_to(target).with_suffix("").parts).removesuffix(".__init__"))
        missing |= {f"{path.name}: {name}" for name in imported(path) if name not in carried}
    if missing:
        raise SystemExit(f"the binary lacks modules that the runner imports: {', '.join(sorted(missing))}")
    handed_over = repr((carried | set(sys.builtin_module_names), modules, str(target)))
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=handed_over, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit("a module of the binary cannot be imported there, see above: look at UNUSED in the spec")


def imported(path: Path) -> Iterator[str]:
    """The absolute module names in the import statements of one source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)

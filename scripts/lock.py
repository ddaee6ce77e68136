"""Writes the hashed requirement files in requirements/ from pyproject.toml: for every platform and Python at once.

`make lock` keeps each version that still fits; `make lock UPGRADE=1` takes the newest that the ranges admit. torch and
what only its CUDA builds need are left out: they are installed first, by the pins in requirements/torch.txt.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
TORCH = LOCKS / "torch.txt"
EXTRAS = {"default": [], "dev": ["dev"], "diffusers": ["diffusers"], "gan": ["gan"]}
LEFT_OUT = re.compile(r"(torch|torchvision|triton)==|(cuda|nvidia)-")


def blocks(text: str) -> list[str]:
    """The lines of a requirement file, each with the indented ones that continue it."""
    return [block for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if block]


def resolve(uv: str, extras: list[str], constraint: Path, target: Path) -> None:
    """Resolve one environment for all platforms. Versions that the target names already are kept if they fit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    command = [
        *(uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-annotate"),
        *("--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"),
        *("--python-version", project["project"]["requires-python"].removeprefix(">=")),
        *(word for extra in extras for word in ("--extra", extra)),
        *("--constraint", str(constraint), "--output-file", str(target), "pyproject.toml", "-"),
    ]
    # The build backend is installed with the rest, since the project itself is built without isolation.
    backend = "\n".join(project["build-system"]["requires"])
    subprocess.run(command, cwd=ROOT, input=backend, text=True, check=True)


def main() -> int:
    """Resolve everything together, and then each environment within that, so that their versions agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the uv to resolve with")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the ranges admit")
    given = parser.parse_args()
    files = {name: LOCKS / f"{name}.txt" for name in EXTRAS}
    with tempfile.TemporaryDirectory() as scratch:
        together = Path(scratch, "together.txt")
        if not given.upgrade:
            kept = [block for file in files.values() if file.exists() for block in blocks(file.read_text("utf-8"))]
            together.write_text("".join(dict.fromkeys(kept)), "utf-8")
        resolve(given.uv, sorted({one for extras in EXTRAS.values() for one in extras}), TORCH, together)
        for name, extras in EXTRAS.items():
            target = Path(scratch, f"{name}.txt")
            resolve(given.uv, extras, together, target)
            found = blocks(target.read_text("utf-8"))
            files[name].write_text("".join(block for block in found if not LEFT_OUT.match(block)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The second distribution, mudenet-runtime: those modules of the package that need no PyTorch (nbs/decisions/0013)."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=["="])
ini.read(root / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


class some_modules(build_py):
    """Of the package only what settings.ini names."""

    def find_package_modules(self, package, package_dir):
        wanted = set(cfg["runtime_modules"].split())
        return [m for m in super().find_package_modules(package, package_dir) if m[1] in wanted]


setup(
    name=cfg["lib_name"] + "-runtime",
    version=cfg["version"],
    description="Exported MuDeNet detectors beside a camera: predict, watch a folder, answer over HTTP; without PyTorch",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    python_requires=">=" + cfg["min_python"],
    packages=[cfg["lib_path"]],
    package_dir={cfg["lib_path"]: f"../{cfg['lib_path']}"},
    include_package_data=False,
    package_data={cfg["lib_path"]: ["py.typed", "serve.html"]},
    install_requires=shlex.split(cfg["runtime_requirements"]),
    extras_require={e: shlex.split(cfg[f"{e}_requirements"]) for e in ("openvino", "serve")},
    cmdclass={"build_py": some_modules},
    entry_points={"console_scripts": [f"{cfg['lib_name']}={cfg['lib_path']}.line:main"]},
    zip_safe=False,
)

"""Packaging: every value comes from settings.ini (the nbdev 2 convention)."""

import shlex
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(root / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
extras = ("dev", "explorer", "ray", "export", "openvino", "int8", "serve", "track", "hub", "anomalib")


class with_register(build_py):
    """A wheel carries the register of assumptions inside the package; a checkout has it beside."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, cfg["lib_path"], "register")
            target.mkdir(parents=True, exist_ok=True)
            for entry in sorted((root / "assumptions").glob("A-*.md")):
                shutil.copyfile(entry, target / entry.name)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["configs/*.yaml", "weights/*", "py.typed", "serve.html", "zoo.json"]},
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={e: shlex.split(cfg[f"{e}_requirements"]) for e in extras},
    entry_points={
        "console_scripts": shlex.split(cfg["console_scripts"]),
        # lets nbdev turn `names in backticks` into links to their documentation
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    cmdclass={"build_py": with_register},
    zip_safe=False,
)

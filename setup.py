"What settings.ini says, handed to setuptools; the rest stands in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}

setup(
    license=cfg["license"],
    keywords=cfg["keywords"].split(),
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "nbdev": ["gz_nbdev = gz_nbdev._modidx:d"],
        "console_scripts": cfg["console_scripts"].split(),
    },
)

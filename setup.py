"""The packages of the distribution; all else is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["inference", "inference.*"]), "inference.configs"],
    package_dir={"inference.configs": "configs"},
)

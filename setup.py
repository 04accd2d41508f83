"""For tools that still call setup.py. Everything it once said is in pyproject.toml."""

from setuptools import setup

setup()

"""Packaging of gpt2tg. Exact versions that were tested together are in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "gpt2tg" / "__init__.py").read_text(), re.M)[1]
SCRIPTS = ["gpt2_text_generation", "text_generation_demo", "finetune_gpt2", "generate_from_finetuned"]

setup(
    name="gpt2tg",
    version=VERSION,
    description="Fine-tune GPT-2 on your own text and generate text from it",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["gpt2tg", "gpt2tg.*"]),
    package_data={"gpt2tg": ["bundled/*/*", "comparison/templates/*", "engine/*.c", "py.typed"]},
    py_modules=SCRIPTS,
    entry_points={"console_scripts": [f"{name}={name}:main" for name in SCRIPTS]},
    install_requires=[
        "torch>=2.8",
        "transformers>=5,<6",
        "accelerate>=1.1",
        "tokenizers>=0.22",
        "safetensors>=0.6",
        "huggingface_hub>=1",
        "numpy>=1.26",
        "peft>=0.17",
        "tqdm>=4.60",
        "prompt_toolkit>=3.0.36",
        "wcwidth>=0.5",
        "platformdirs>=3",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.8",
        "optuna>=4",
        "sacrebleu>=2.4",
        "filelock>=3.12",
        "psutil>=5.9",
    ],
    extras_require={"dev": ["pytest>=8", "pytest-xdist>=3.6", "ruff", "datasets>=4.3"]},
)

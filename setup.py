"""pip install . gives the commands numseq-server and numseq-client."""

import os
import re

from setuptools import setup

HERE = os.path.dirname(os.path.abspath(__file__))


def read(*path):
    with open(os.path.join(HERE, *path), encoding="utf-8") as file:
        return file.read()


setup(
    name="numseq",
    version=re.search(r'^__version__ = "(.+)"$', read("numseq", "version.py"), re.MULTILINE).group(1),
    description="A complete, checksummed sequence of numbers over connections that drop, in plain Python",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    python_requires=">=3.6",
    packages=["numseq"],
    package_data={"numseq": ["py.typed", "*.pyi"]},
    entry_points={
        "console_scripts": [
            "numseq-server = numseq.__main__:server",
            "numseq-client = numseq.__main__:client",
        ]
    },
    extras_require={"test": ["pytest", "coverage"]},
    classifiers=[
        "Environment :: Console",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.6",
        "Topic :: System :: Networking",
    ],
)

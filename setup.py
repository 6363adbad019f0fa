"""README as a package index shows it: there, links into this repository are plain text."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text("utf-8")
LINK_WITHIN = re.compile(r"\[([^\]]+)\]\((?!https?://)[^)]+\)")

setup(
    long_description=LINK_WITHIN.sub(r"\1", README), long_description_content_type="text/markdown"
)

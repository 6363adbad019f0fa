"""Sphinx reads this; `scripts/build_docs.py` lays out what it reads, and calls it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

project = "jaxllama"
author = "The jaxllama authors"
copyright = author
language = "en"
smartquotes = False  # of `--mask` they make a dash
root_doc = "index"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docsite.docstrings",
    "docsite.mathml",
]

# Pages: the Markdown of a code host, its anchors, and formulas between dollars.
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["amsmath", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = False
myst_dmath_allow_space = False
myst_update_mathjax = False
# What a terminal shows is not always what a lexer knows; it is shown without colours then.
suppress_warnings = ["misc.highlighting_failure"]
html_math_renderer = "mathml"
pygments_style = "a11y-high-contrast-light"
highlight_language = "none"  # a block that names none is what a terminal shows
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"

# The Python interface: Google's sections, types from annotations.
autosummary_generate = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
default_role = "code"
python_use_unqualified_type_names = True
# Unions of a dozen types, which say less than their names.
autodoc_type_aliases = {name: name for name in ("DTypeLike", "Dtypes", "Prompts", "SubjectSpec")}
nitpicky = True
# Types of others, whose pages take a network to link to; shapes and aliases in annotations.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|jaxtyping|flax|numpy|np|os|pathlib|collections|typing)\..*"),
    ("py:.*", r"'.*'|Path|ndarray|DTypeLike|(tuple|dict|list)\[.*"),
    # Of parts that are not for users.
    (
        "py:.*",
        r".*\.(AdaptedSubject|Cells|HasDict|Int8Array|KernelArguments|KeptPictures|Parts|TorchReference|TraceSubject)",
    ),
    (
        "py:.*",
        r"Array|Backend|Dtypes|EmptyRow|Form|Index|Int|MeshLike|Parts|PassSnapshot|Prompts|QualityReport",
    ),
    ("py:.*", "SubjectSpec"),
]

html_theme = "sphinx_book_theme"
html_title = "jaxllama and parity"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    # One place to search from, that of the sidebar.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}

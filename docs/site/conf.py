"""Sphinx's configuration. The sources are the repository's own Markdown files, where they are; see `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

project = "twisted_vllm"
author = "the authors of twisted_vllm"
copyright = author
root_doc = "README"
source_suffix = {".md": "markdown"}
# the pages of the repository's root and those below docs; the second list keeps Sphinx out of large directories
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name != "docs"]

extensions = ["myst_parser", "sphinx_copybutton", "docs.site.extension"]
myst_heading_anchors = 6
myst_enable_extensions: list[str] = []
myst_number_code_blocks: list[str] = []
suppress_warnings: list[str] = []
nitpicky = True

html_theme = "furo"
html_title = "twisted_vllm"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_permalinks_icon = "#"
html_use_index = False
templates_path: list[str] = []
html_theme_options = {"navigation_with_keys": False}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

# commands are copied without the prompt and without what they print
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

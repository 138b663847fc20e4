"""Settings of the documentation site, which `make docs` builds."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.util.docutils import SphinxRole

import metagan_fast

project = "metagan_fast"
copyright = "the metagan_fast authors"
release = version = metagan_fast.__version__
smartquotes = False  # they turn -- of options into a dash

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.autoprogram", "sphinx_copybutton"]

# Pages

myst_heading_anchors = 4  # as GitHub's
nb_execution_mode = "force"  # notebooks are stored without outputs
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_ipywidgets_js: dict[str, object] = {}  # the default's are loaded from elsewhere
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

# A page that no list of pages names is a warning; a name in them without a page is not.
suppress_warnings = ["toc.not_readable"]

# Reference

default_role = "name"
add_module_names = False
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # lines such as `lr, betas: ...` stay whole
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_use_unqualified_type_names = True

# Site

html_theme = "furo"
html_title = "metagan_fast"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # read by fetch, which files opened in a browser may not
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site by the files of the source tree that they show."""


def _link_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to files above this folder, which GitHub follows, into links to their pages."""

    def link(match: re.Match[str]) -> str:
        return f"]({match[1].removeprefix('../')}{_PAGES[match[2]]}"

    source[0] = re.sub(rf"\]\(((?:\.\./)+)({'|'.join(map(re.escape, _PAGES))})", link, source[0])


def _set_dashes(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Turn the dashes between arguments and their descriptions into en dashes."""
    lines[:] = [line.replace(" -- ", " \N{EN DASH} ") for line in lines]


class _Name(SphinxRole):
    """Code in backticks: a link if it is a class or a dotted name of the package, since `generator` may be anything."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the code and no messages."""
        if re.fullmatch(r"[A-Z]\w+(\.\w+)*|\w+(\.\w+)+", self.text):
            role = PyXRefRole()
            return role("py:obj", self.rawtext, self.text, self.lineno, self.inliner, self.options, self.content)
        return [nodes.literal(self.rawtext, self.text)], []


def setup(app: Sphinx) -> None:
    """Add the role of single backticks and the changes of links and dashes."""
    app.add_role("name", _Name())
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _set_dashes, priority=600)  # after napoleon

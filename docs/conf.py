"""Settings of the manual; ``nox -s docs`` builds it."""

project = "Model Training Framework"
author = "the MTF authors"
project_copyright = "the MTF authors; Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
napoleon_use_ivar = True
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
# Names of this repository must resolve. Those of others would need their inventories,
# which a build without a network does not have.
nitpick_ignore_regex = [
    ("py:.*", r"(?!mtf_|model_training_framework).*"),
    ("py:.*", r"mtf_.*\._.*"),  # what a signature names is not always to be imported
    ("py:class", r"mtf_.*\.\w*T"),  # type variables
]

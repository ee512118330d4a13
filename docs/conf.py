"""How the pages of docs/ become a site: Sphinx reads the Markdown with MyST, Furo dresses it. `make docs` builds it."""

project = "Twogear"
author = "Twogear's authors"
project_copyright = "Twogear's authors, Apache-2.0"

extensions = ["myst_parser"]
exclude_patterns = ["training/history/recipes.json"]
nitpicky = True  # a link that leads nowhere is a warning, and `make docs` takes warnings for errors
myst_heading_anchors = 4  # headings have the anchors that forges give them, so one link works in both places
highlight_language = "none"  # of blocks that name no language

html_theme = "furo"
html_title = "Twogear"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_favicon = "../ui/src/icon.svg"
html_theme_options = {"top_of_page_buttons": [], "navigation_with_keys": True}

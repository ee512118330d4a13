"""Renews the tables in the files."""

from server.commands.reference.pages import FAMILIES, FILES, OBSERVABILITY, PROFILES, render

for file in (*FILES, FAMILIES, OBSERVABILITY, PROFILES):
    file.write_text(render(file.read_text()))

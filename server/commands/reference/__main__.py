"""Renews the tables in the files."""

from server.commands.reference.pages import FILES, OBSERVABILITY, PROFILES, render

for file in (*FILES, OBSERVABILITY, PROFILES):
    file.write_text(render(file.read_text()))

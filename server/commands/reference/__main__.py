"""Renews the tables in the files."""

from server.commands.reference.pages import FILES, OBSERVABILITY, render

for file in (*FILES, OBSERVABILITY):
    file.write_text(render(file.read_text()))

"""What several APIs share: strict fields, sampling fields, the form of an answer, and errors that name the field."""

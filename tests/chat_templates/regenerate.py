"""Rewrites the golden files: `python -m tests.chat_templates.regenerate`; read the diff before you commit it."""

from tests.chat_templates.golden_files import FOLDER, golden_files


def main() -> None:
    """Writes every golden file anew and removes those of conversations that are gone."""
    files = dict(golden_files())
    FOLDER.mkdir(exist_ok=True)
    for stale in set(FOLDER.iterdir()) - files.keys():
        stale.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8", newline="")
    print(f"{len(files)} files in {FOLDER}")


if __name__ == "__main__":
    main()

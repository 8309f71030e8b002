"""`python -m search_app.cli` is the command `lakeloop`."""

from search_app.cli.main import entry

if __name__ == "__main__":
    entry()

"""The commands of `lakeloop`, by what they are for; each module registers its own with `search_app/cli/main.py`."""

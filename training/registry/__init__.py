"""The record: runs, recipes, model versions, releases."""

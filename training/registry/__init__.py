"""The record of training: recipes, runs, model versions, their promotion and release log."""

"""The bulk way in: folders, prediction logs and data sets."""

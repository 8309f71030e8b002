"""Prediction logs: from a row of a file or an event to the columns of the table samples."""

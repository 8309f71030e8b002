"""The version of lakeloop, said once."""

VERSION = "0.1.0"

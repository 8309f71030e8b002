"""The version of lakeloop."""

VERSION = "0.1.0"

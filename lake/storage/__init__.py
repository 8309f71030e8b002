"""Every touch of Lance: the tables, opening and migrating a lake, and reading and writing rows."""

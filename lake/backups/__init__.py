"""Backups: a copy of a lake at one moment, and a lake made from one."""

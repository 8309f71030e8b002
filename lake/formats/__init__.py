"""Data set formats: a module or a room each, with its reader and its writer"""
